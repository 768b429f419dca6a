"""What a model on disk can do, read from its small files: neither the weights nor any library that runs them is loaded."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from metalscribe.engine import catalog
from metalscribe.engine.manifest import PREPROCESSOR, VOCABULARIES, missing_files, read_manifest
from metalscribe.errors import ModelMissing
from metalscribe.transcript import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

# Sizes of Whisper's vocabularies (openai/whisper, tokenizer.py): the multilingual one has one token more than the
# English one, and large-v3 added Cantonese.
_ENGLISH_VOCABULARY = 51864
_MULTILINGUAL_VOCABULARY = 51865
_LARGE_V3_VOCABULARY = 51866

_LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2,3})\|>")


def describe(path: Path, *, name: str | None = None) -> ModelCard:
    """Read a model's card from its directory.

    ``multilingual`` is a fact about the vocabulary: whether prompts carry language and task tokens. ``languages`` is what
    the model was trained on: English alone for an English vocabulary, and for a downloaded distilled model whose vocabulary
    would allow more.

    Args:
        path: a directory with a CTranslate2 Whisper model.
        name: what the card calls it; by default its repository, ``demo``, or the directory's own name.

    Raises:
        ModelMissing: a file is absent, truncated or not what it should be; the message names the file.
    """
    manifest = read_manifest(path)
    label = name or _name(path, None if manifest is None else manifest.repository)
    damaged = missing_files(path, manifest)
    if damaged:
        raise _broken(label, damaged[0].name, damaged[0].problem or "is missing")

    _json_object(path, "config.json", label)
    tokenizer = _json_object(path, "tokenizer.json", label)
    vocabulary, vocabulary_file = _vocabulary(path, label)
    if len(vocabulary) < _ENGLISH_VOCABULARY:
        raise _broken(label, vocabulary_file, f"has {len(vocabulary):,} tokens, too few for a Whisper model")

    multilingual = len(vocabulary) >= _MULTILINGUAL_VOCABULARY
    known = catalog.find(manifest.repository) if manifest is not None else None
    if not multilingual or (known is not None and not known.multilingual):
        languages: tuple[str, ...] = ("en",)
    else:
        languages = _languages(vocabulary) or _languages(_added_tokens(tokenizer))
        if not languages:
            raise _broken(
                label, vocabulary_file, "has no language tokens although its size is that of a multilingual model"
            )
    return ModelCard(label, multilingual, languages, _mel_bands(path, label, len(vocabulary)))


def _name(path: Path, repository: str | None) -> str:
    if repository is not None:
        return repository
    return catalog.DEMO if path.parent.name == catalog.DEMO_PACKAGE else path.name


def _vocabulary(path: Path, label: str) -> tuple[list[str], str]:
    name = next(name for name in VOCABULARIES if (path / name).is_file())
    if name.endswith(".json"):
        tokens = _json(path, name, label)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise _broken(label, name, "is not a list of tokens")
        return tokens, name
    # Only the newline separates: a token may hold what str.splitlines() takes for a line end.
    return _text(path, name, label).removesuffix("\n").split("\n"), name


def _mel_bands(path: Path, label: str, vocabulary_size: int) -> int:
    if not (path / PREPROCESSOR).is_file():
        return 128 if vocabulary_size == _LARGE_V3_VOCABULARY else 80
    bands = _json_object(path, PREPROCESSOR, label).get("feature_size", 80)
    if not isinstance(bands, int) or isinstance(bands, bool) or bands <= 0:
        raise _broken(label, PREPROCESSOR, f"gives {bands!r} as feature_size, which is not a number of mel bands")
    return bands


def _languages(tokens: list[str]) -> tuple[str, ...]:
    matches = (_LANGUAGE_TOKEN.fullmatch(token) for token in tokens)
    return tuple(match.group(1) for match in matches if match is not None)


def _added_tokens(tokenizer: dict[str, Any]) -> list[str]:
    added = tokenizer.get("added_tokens")
    if not isinstance(added, list):
        return []
    return [str(token.get("content", "")) for token in added if isinstance(token, dict)]


def _json_object(path: Path, name: str, label: str) -> dict[str, Any]:
    value = _json(path, name, label)
    if not isinstance(value, dict):
        raise _broken(label, name, "is not a JSON object")
    return value


def _json(path: Path, name: str, label: str) -> Any:
    try:
        return json.loads(_text(path, name, label))
    except ValueError as error:
        raise _broken(label, name, f"is not valid JSON ({error})") from None


def _text(path: Path, name: str, label: str) -> str:
    try:
        return (path / name).read_text(encoding="utf-8")
    except OSError as error:
        raise _broken(label, name, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _broken(label, name, "is not UTF-8 text") from None


def _broken(label: str, name: str, problem: str) -> ModelMissing:
    return ModelMissing(f"The model {label} cannot be used: {name} {problem}. Download or copy the whole model again.")
