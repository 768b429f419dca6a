"""The languages that Whisper knows: their codes, their English names, and what people call them.

Codes are those of the model's vocabulary: ISO 639-1, but ``jw`` for Javanese (ISO has ``jv``), and ISO 639-3 where there
is no shorter one (``haw``, ``yue``). Names are those that OpenAI's ``verbose_json`` answers with.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from metalscribe.errors import InvalidParameter

LANGUAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "af": "afrikaans",
        "am": "amharic",
        "ar": "arabic",
        "as": "assamese",
        "az": "azerbaijani",
        "ba": "bashkir",
        "be": "belarusian",
        "bg": "bulgarian",
        "bn": "bengali",
        "bo": "tibetan",
        "br": "breton",
        "bs": "bosnian",
        "ca": "catalan",
        "cs": "czech",
        "cy": "welsh",
        "da": "danish",
        "de": "german",
        "el": "greek",
        "en": "english",
        "es": "spanish",
        "et": "estonian",
        "eu": "basque",
        "fa": "persian",
        "fi": "finnish",
        "fo": "faroese",
        "fr": "french",
        "gl": "galician",
        "gu": "gujarati",
        "ha": "hausa",
        "haw": "hawaiian",
        "he": "hebrew",
        "hi": "hindi",
        "hr": "croatian",
        "ht": "haitian creole",
        "hu": "hungarian",
        "hy": "armenian",
        "id": "indonesian",
        "is": "icelandic",
        "it": "italian",
        "ja": "japanese",
        "jw": "javanese",
        "ka": "georgian",
        "kk": "kazakh",
        "km": "khmer",
        "kn": "kannada",
        "ko": "korean",
        "la": "latin",
        "lb": "luxembourgish",
        "ln": "lingala",
        "lo": "lao",
        "lt": "lithuanian",
        "lv": "latvian",
        "mg": "malagasy",
        "mi": "maori",
        "mk": "macedonian",
        "ml": "malayalam",
        "mn": "mongolian",
        "mr": "marathi",
        "ms": "malay",
        "mt": "maltese",
        "my": "myanmar",
        "ne": "nepali",
        "nl": "dutch",
        "nn": "nynorsk",
        "no": "norwegian",
        "oc": "occitan",
        "pa": "punjabi",
        "pl": "polish",
        "ps": "pashto",
        "pt": "portuguese",
        "ro": "romanian",
        "ru": "russian",
        "sa": "sanskrit",
        "sd": "sindhi",
        "si": "sinhala",
        "sk": "slovak",
        "sl": "slovenian",
        "sn": "shona",
        "so": "somali",
        "sq": "albanian",
        "sr": "serbian",
        "su": "sundanese",
        "sv": "swedish",
        "sw": "swahili",
        "ta": "tamil",
        "te": "telugu",
        "tg": "tajik",
        "th": "thai",
        "tk": "turkmen",
        "tl": "tagalog",
        "tr": "turkish",
        "tt": "tatar",
        "uk": "ukrainian",
        "ur": "urdu",
        "uz": "uzbek",
        "vi": "vietnamese",
        "yi": "yiddish",
        "yo": "yoruba",
        "yue": "cantonese",
        "zh": "chinese",
    }
)

_OTHER_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "azeri": "az",
        "bahasa indonesia": "id",
        "bahasa melayu": "ms",
        "bangla": "bn",
        "bokmal": "no",
        "brazilian portuguese": "pt",
        "burmese": "my",
        "cambodian": "km",
        "castilian": "es",
        "chinese simplified": "zh",
        "chinese traditional": "zh",
        "farsi": "fa",
        "filipino": "tl",
        "flemish": "nl",
        "haitian": "ht",
        "kiswahili": "sw",
        "laotian": "lo",
        "letzeburgesch": "lb",
        "mandarin": "zh",
        "mandarin chinese": "zh",
        "moldavian": "ro",
        "moldovan": "ro",
        "norwegian bokmal": "no",
        "norwegian nynorsk": "nn",
        "panjabi": "pa",
        "pushto": "ps",
        "simplified chinese": "zh",
        "sinhalese": "si",
        "slovene": "sl",
        "traditional chinese": "zh",
        "valencian": "ca",
    }
)

# ISO 639 and the registry of BCP 47 subtags have these for languages that Whisper knows under another code.
_OTHER_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {"cmn": "zh", "fil": "tl", "in": "id", "iw": "he", "ji": "yi", "jv": "jw", "mo": "ro", "nb": "no"}
)

# Language, then optionally script, region and variants (RFC 5646, section 2.1; extensions do not change the language).
_LANGUAGE_TAG = re.compile(
    r"([a-z]{2,3})(?:-[a-z]{4})?(?:-(?:[a-z]{2}|[0-9]{3}))?(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"
)
_LONGEST = 40


def language_name(code: str) -> str:
    """The English name in lower case, ``english`` for ``en``; a code that a custom model added names itself."""
    return LANGUAGES.get(code, code)


def parse_language(text: str) -> str:
    """The code for a language however it was written: ``EN``, ``en-US``, ``pt_BR``, ``English``, ``Mandarin``.

    Raises:
        InvalidParameter: no language of Whisper's; the message names the one that looks nearest.
    """
    written = text.strip()
    if not written:
        raise _refusal(
            "language is empty: name it, such as 'en' or 'english', or leave the parameter out to have it detected"
        )
    if len(written) > _LONGEST:
        raise _refusal(
            f"language is {len(written)} characters long: use a code such as 'en' or a name such as 'english'"
        )
    names = {**{name: code for code, name in LANGUAGES.items()}, **_OTHER_NAMES}
    plain = _plain(written)
    words = " ".join(re.split(r"[\s_-]+", plain))
    if words in names:
        return names[words]
    tag = _LANGUAGE_TAG.fullmatch(plain.replace("_", "-"))
    code = _OTHER_CODES.get(tag[1], tag[1]) if tag else ""
    if code in LANGUAGES:
        return code
    near = difflib.get_close_matches(words, [*names, *LANGUAGES], n=1)
    if not near:
        raise _refusal(
            f"{written!r} is not a language that Whisper knows: use a code such as 'en' or a name such as 'english'"
        )
    code = names.get(near[0], near[0])
    raise _refusal(f"{written!r} is not a language that Whisper knows; did you mean {code!r} ({LANGUAGES[code]})?")


def wanted_language(text: str | None) -> str | None:
    """As :func:`parse_language`; None, to detect it, where nothing or ``auto`` is written."""
    return None if text is None or text.strip().lower() == "auto" else parse_language(text)


def _plain(text: str) -> str:
    """Lower case without accents, so that Māori and Bokmål are found; full-width letters become plain ones."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _refusal(detail: str) -> InvalidParameter:
    return InvalidParameter(detail, parameter="language")
