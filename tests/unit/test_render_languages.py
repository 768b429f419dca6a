from __future__ import annotations

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES
from hypothesis import given
from hypothesis import strategies as st

from metalscribe.errors import InvalidParameter
from metalscribe.languages import LANGUAGES, language_name, parse_language


def test_codes_are_those_of_the_model() -> None:
    assert set(LANGUAGES) == set(_LANGUAGE_CODES)
    assert len(LANGUAGES) == 100
    assert "yue" in LANGUAGES


def test_names_are_distinct_lower_case_english() -> None:
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)
    assert all(name.isascii() and name == name.lower().strip() and name for name in LANGUAGES.values())


@pytest.mark.parametrize(
    ("code", "name"), [("en", "english"), ("my", "myanmar"), ("ht", "haitian creole"), ("yue", "cantonese")]
)
def test_language_name(code: str, name: str) -> None:
    assert language_name(code) == name


def test_a_code_of_a_custom_model_names_itself() -> None:
    assert language_name("gsw") == "gsw"


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_every_code_and_every_name_is_understood_in_any_case(code: str) -> None:
    for written in (
        code,
        code.upper(),
        f" {code.title()}\n",
        LANGUAGES[code],
        LANGUAGES[code].title(),
        LANGUAGES[code].upper(),
    ):
        assert parse_language(written) == code


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("en-US", "en"),
        ("pt_BR", "pt"),
        ("zh-Hant-TW", "zh"),
        ("es-419", "es"),
        ("de-CH-1901", "de"),
        ("yue-HK", "yue"),
        ("HAW", "haw"),
        ("English", "en"),
        ("castilian", "es"),
        ("Mandarin", "zh"),
        ("mandarin chinese", "zh"),
        ("Haitian_Creole", "ht"),
        ("haitian-creole", "ht"),
        ("Farsi", "fa"),
        ("Flemish", "nl"),
        ("Māori", "mi"),
        ("Bokmål", "no"),
        ("norwegian nynorsk", "nn"),
        ("jv", "jw"),
        ("iw", "he"),
        ("nb-NO", "no"),
        ("cmn-Hans-CN", "zh"),
        ("fil", "tl"),
        ("ｅｎ", "en"),
    ],
)
def test_tags_and_aliases(written: str, code: str) -> None:
    assert parse_language(written) == code


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("Englich", "'en' (english)"),
        ("germann", "'de' (german)"),
        ("mandarine", "'zh' (chinese)"),
        ("eng", "'en' (english)"),
    ],
)
def test_the_nearest_language_is_named(written: str, nearest: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_language(written)
    assert caught.value.parameter == "language"
    assert repr(written) in caught.value.detail
    assert nearest in caught.value.detail


@pytest.mark.parametrize(
    "written", ["xx", "", "  ", "en-", "-en", "en-US.UTF-8", "en us", "tlh", "<|en|>", "en\x00", "?"]
)
def test_nonsense_is_refused(written: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_language(written)
    assert caught.value.parameter == "language"
    assert "'en'" in caught.value.detail or "did you mean" in caught.value.detail


def test_long_input_is_neither_searched_nor_echoed() -> None:
    with pytest.raises(InvalidParameter, match="100000 characters") as caught:
        parse_language("x" * 100_000)
    assert len(caught.value.detail) < 200


@given(st.text(max_size=60))
def test_any_text_is_a_known_code_or_refused(written: str) -> None:
    try:
        assert parse_language(written) in LANGUAGES
    except InvalidParameter as error:
        assert error.parameter == "language"  # noqa: PT017  (either outcome is right)
