"""Models: which one a host serves and where, brought there whole, verified, and not read again without need."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from fakes import DISTRIBUTIONS, commands, named, plan
from pyinfra.api.exceptions import DeployError
from shell_host import CommandFailed, ShellHost

from metalscribe.engine.manifest import FileRecord, Manifest, write_manifest
from metalscribe.engine.weights import locate
from metalscribe_provision.bundle.contents import read_bundle
from metalscribe_provision.hostdata import Driver, HostData
from metalscribe_provision.model import deploy as deploy_module
from metalscribe_provision.model import facts, local, operations, record
from metalscribe_provision.model.deploy import model
from metalscribe_provision.model.facts import HostModel, parse_model
from metalscribe_provision.model.local import LocalModel, downloaded_model, folder_model, model_uploads
from metalscribe_provision.model.operations import brought, downloaded
from metalscribe_provision.model.pins import folder_name, pinned, written
from metalscribe_provision.model.place import model_setting
from metalscribe_provision.runtime import upload
from metalscribe_provision.runtime.interpreter import Interpreter
from metalscribe_provision.runtime.release import Release
from metalscribe_provision.runtime.upload import Upload

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WHISPER = struct.pack("<IH", 6, 12) + b"WhisperSpec\0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder of the operator's: the beginning of a real one's weights, and little else."""
    made = tmp_path / "fine-tuned"
    made.mkdir()
    (made / "model.bin").write_bytes(WHISPER + bytes(range(256)) * 20)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (made / name).write_text("{}")
    (made / "README.md").write_text("not of the model")
    return made


def data(**variables: Any) -> HostData:
    return HostData(driver=Driver.NONE, **variables)


# --- which model, and where ---


def test_the_setting_is_the_demo_model_or_a_folder_with_its_commit() -> None:
    assert model_setting(data(model="demo")) == "demo"
    turbo = "/var/lib/metalscribe/models/mobiuslabsgmbh--faster-whisper-large-v3-turbo@0a363e9161cb"
    assert model_setting(data()) == turbo
    assert model_setting(data(model="turbo")) == turbo
    assert model_setting(data(model=f"owner/name@{COMMIT}")) == "/var/lib/metalscribe/models/owner--name@0123456789ab"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("owner/name", r"owner/name is not pinned: write owner/name@<commit>, all 40 digits"),
        ("owner/name@main", "is not pinned"),
        ("small@0123456789ab", "model=small@0123456789ab is not pinned: write small@<commit>"),
        ("larg-v3", "did you mean large-v3"),
        ("/srv/models/mine", "a folder on this machine is given with model_path"),
        ("../mine", "a folder on this machine is given with model_path"),
    ],
)
def test_a_model_that_is_not_pinned_is_refused(wanted: str, said: str) -> None:
    with pytest.raises(DeployError, match=said):
        model_setting(data(model=wanted))


def test_a_pinned_model_is_downloaded_at_its_commit_into_the_folder_of_its_setting() -> None:
    reference = pinned("base.en")
    assert written(reference) == "base.en@3d3d5dee26484f91867d81cb899cfcf72b96be6c"
    assert folder_name(reference) == "Systran--faster-whisper-base.en@3d3d5dee2648"
    assert folder_name(pinned(f"base.en@{COMMIT}")) == "Systran--faster-whisper-base.en@0123456789ab"


def test_a_folders_name_on_the_host_follows_its_content(folder: Path) -> None:
    first = model_setting(data(model_path=folder))
    assert PurePosixPath(first).name.startswith("fine-tuned@")
    (folder / "README.md").write_text("still not of the model")
    assert model_setting(data(model_path=folder)) == first
    (folder / "config.json").write_text('{"other": 1}')
    assert model_setting(data(model_path=folder)) != first
    with pytest.raises(DeployError, match="model=demo and model_path are two models"):
        model_setting(data(model="demo", model_path=folder))


def test_a_folder_that_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="is no folder on this machine"):
        folder_model(tmp_path / "nowhere")
    (folder / "vocabulary.txt").unlink()
    with pytest.raises(DeployError, match=r"it has no vocabulary\.json or vocabulary\.txt$"):
        folder_model(folder)
    (folder / "model.bin").unlink()
    (folder / "model.safetensors").write_text("")
    with pytest.raises(
        DeployError, match=r"it has no model\.bin, no vocabulary.*convert it with ct2-transformers-converter"
    ):
        folder_model(folder)


@pytest.mark.parametrize(
    "weights", [b"", b"\x06\0", struct.pack("<IH", 6, 16) + b"TransformerSpec\0", b"version https://git-lfs"]
)
def test_weights_of_something_else_are_refused(folder: Path, weights: bytes) -> None:
    (folder / "model.bin").write_bytes(weights)
    with pytest.raises(DeployError, match=r"model\.bin is not the weights of a Whisper model in CTranslate2 format"):
        folder_model(folder)


def test_the_weights_of_the_demo_model_are_what_they_are(demo_files: Path) -> None:
    assert folder_model(demo_files).name == "model@2a4410629ba3"


@pytest.fixture
def demo_files() -> Path:
    return locate("demo", Path()).path


def with_manifest(folder: Path) -> Manifest:
    files = {item.name: FileRecord(item.size, item.sha256) for item in model_uploads(LocalModel(folder, ""))}
    manifest = Manifest("owner/name", COMMIT, files, "2026-01-01T00:00:00.000000+00:00")
    write_manifest(folder, manifest)
    return manifest


def test_a_folder_that_is_not_what_its_manifest_says_is_refused(folder: Path) -> None:
    with_manifest(folder)
    assert "metalscribe-model.json" in [item.name for item in model_uploads(folder_model(folder))]
    (folder / "config.json").write_text('{"damaged": 1}')
    with pytest.raises(DeployError, match=r"is damaged: its files are not what its metalscribe-model\.json says"):
        folder_model(folder)


# --- this machine's own download ---


def test_a_model_is_downloaded_once(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, cache: Path) -> None:
        asked.append(name)
        with_manifest(folder)
        folder.rename(cache / f"owner--name@{COMMIT[:12]}")

    monkeypatch.setattr(local, "download", download)
    for _ in range(2):
        found = downloaded_model(f"owner/name@{COMMIT}", tmp_path)
        assert found == LocalModel(tmp_path / f"owner--name@{COMMIT[:12]}", f"owner--name@{COMMIT[:12]}")
    assert asked == [f"owner/name@{COMMIT}"]


def test_what_the_hub_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DeployError, match=rf"^model=owner/name@{COMMIT}: "):
        downloaded_model(f"owner/name@{COMMIT}", tmp_path)


# --- the record of what was verified ---


def run_record(folder: Path, *expected: str) -> subprocess.CompletedProcess[str]:
    """As on a host: alone, from standard input."""
    command = [sys.executable, "-I", "-", str(folder), *expected]
    return subprocess.run(command, input=Path(record.__file__).read_text(), check=False, capture_output=True, text=True)


def test_a_record_has_every_file(folder: Path) -> None:
    manifest = with_manifest(folder)
    done = run_record(folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["files"]) == {path.name for path in folder.iterdir()}
    assert {name: found["files"][name]["sha256"] for name in manifest.files} == {
        name: entry.sha256 for name, entry in manifest.files.items()
    }


@pytest.mark.parametrize("damage", ["changed", "missing", "unknown", "another"])
def test_there_is_no_record_of_a_damaged_model(folder: Path, damage: str) -> None:
    if damage != "unknown":
        with_manifest(folder)
    if damage == "changed":
        (folder / "config.json").write_text("{ }")
    elif damage == "missing":
        (folder / "config.json").unlink()
    expected = [f"model.bin={'0' * 64}"] if damage == "another" else []
    done = run_record(folder, *expected)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("The model is not what it must be: ")


def test_what_a_host_answers_is_compared_by_size_and_time() -> None:
    files = {"model.bin": {"size": 5, "mtime_ns": 1700000000123456789, "sha256": "a" * 64}}
    lines = ["5 1700000000.1234567890 model.bin", *json.dumps({"files": files}, indent=2).splitlines()]
    assert parse_model(lines).intact
    assert not parse_model(["6 1700000000.1234567890 model.bin", *lines[1:]]).intact
    assert not parse_model(["5 1700000000.1234567880 model.bin", *lines[1:]]).intact
    assert not parse_model(["1 1700000000.0000000000 another.bin", *lines]).intact
    assert not parse_model(lines[1:]).intact
    assert not parse_model(lines[:1]).intact
    assert not parse_model([*lines[:1], "{}"]).intact
    assert not parse_model([]).intact


# --- bringing it to a host ---


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ShellHost:
    """This machine's shell as a host whose folders are the test's."""
    shell = ShellHost(tmp_path / "programs")
    for module in (operations, upload):
        monkeypatch.setattr(module, "host", shell)
        monkeypatch.setattr(module, "INCOMING", PurePosixPath(tmp_path / "incoming"))
    monkeypatch.setattr(upload, "_PIECE_PATH", PurePosixPath(tmp_path / "incoming" / "piece"))
    for module, name in ((operations, "MODELS"), (facts, "MODELS")):
        monkeypatch.setattr(module, name, PurePosixPath(tmp_path / "models"))
    for module in (operations, facts):
        monkeypatch.setattr(module, "RECORDS", PurePosixPath(tmp_path / "records"))
    monkeypatch.setattr(operations, "STATE", PurePosixPath(tmp_path))
    (tmp_path / "models").mkdir()
    return shell


def a_release(path: Path | None = None) -> Release:
    interpreter = Interpreter(sys.executable, "3.11")
    return Release(str(path or "1.0-000000000000"), "1.0", Path("unused"), "", (), interpreter, None)


def bring(folder: Path) -> Any:
    found = folder_model(folder)
    return brought._inner(found.name, lambda: model_uploads(found), a_release())


def test_a_model_appears_in_its_place_complete_and_is_not_read_again(
    host: ShellHost, folder: Path, tmp_path: Path
) -> None:
    name = folder_model(folder).name
    host.run(bring(folder))
    there = tmp_path / "models" / name
    assert (there / "model.bin").read_bytes() == (folder / "model.bin").read_bytes()
    assert not (there / "README.md").exists()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [name]
    assert host.get_fact(HostModel, folder=name).intact
    assert not (tmp_path / "incoming").exists()
    assert list(bring(folder)) == []


def test_a_model_is_whole_or_not_there_whenever_the_deploy_is_cut_off(
    host: ShellHost, folder: Path, tmp_path: Path
) -> None:
    name = folder_model(folder).name
    there = tmp_path / "models" / name
    cut = 0
    while True:
        cut += 1
        host.run(bring(folder), stop_after=cut)
        complete = host.get_fact(HostModel, folder=name).intact
        if there.exists():
            assert (there / "model.bin").read_bytes() == (folder / "model.bin").read_bytes()
        host.run(bring(folder))
        assert host.get_fact(HostModel, folder=name).intact
        if complete:
            break
        for path in (there, tmp_path / "records"):
            host.run([_remove(path)])
    assert cut > 5


def _remove(path: Path) -> Any:
    from pyinfra.api.command import StringCommand

    return StringCommand("rm", "-rf", str(path))


def test_a_model_that_was_touched_is_verified_and_one_that_was_damaged_is_brought_again(
    host: ShellHost, folder: Path, tmp_path: Path
) -> None:
    name = folder_model(folder).name
    host.run(bring(folder))
    (tmp_path / "models" / name / "config.json").touch()
    host.sent = 0
    host.run(bring(folder))
    assert host.sent < 10_000  # the script that verifies, no weights
    (tmp_path / "models" / name / "config.json").write_text("damaged")
    host.run(bring(folder))
    assert (tmp_path / "models" / name / "config.json").read_text() == "{}"
    assert host.get_fact(HostModel, folder=name).intact


def test_a_model_that_cannot_be_had_ends_the_deploy_with_the_reason(host: ShellHost, tmp_path: Path) -> None:
    def nothing() -> list[Upload]:
        raise DeployError("the hub is away")

    with pytest.raises(CommandFailed, match="the hub is away"):
        host.run(brought._inner("some@0", nothing, a_release()))


def test_planning_downloads_nothing(host: ShellHost) -> None:
    def never() -> list[Upload]:
        raise AssertionError("asked for while planning")

    first = next(brought._inner("some@0", never, a_release()))
    assert "install -d -m 700" in str(first)


def test_a_host_downloads_with_its_releases_own_code_and_what_came_is_verified(
    host: ShellHost, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for `metalscribe model download`, whose own tests use a stand-in for the hub.
    with_manifest(folder)
    program = tmp_path / "release" / "venv" / "bin" / "metalscribe"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\n[ "$*" = "model download owner/name@{COMMIT}" ] && cp -r {folder} "$METALSCRIBE_STATE_DIR/models/some@0"\n'
    )
    program.chmod(0o755)

    def download(**sha256: str) -> Any:
        digests = {name.replace("_", "."): digest for name, digest in sha256.items()}
        return downloaded._inner("some@0", f"owner/name@{COMMIT}", a_release(tmp_path / "release"), digests)

    with pytest.raises(CommandFailed, match=r"model\.bin has the SHA-256 [0-9a-f]{64} instead of 0{64}"):
        host.run(download(model_bin="0" * 64))
    assert not host.get_fact(HostModel, folder="some@0").intact
    host.run([_remove(tmp_path / "models" / "some@0")])
    host.run(download())
    assert host.get_fact(HostModel, folder="some@0").intact
    assert list(download()) == []


# --- the plan ---


def fresh() -> dict[Any, Any]:
    return dict(DISTRIBUTIONS["debian-12"])


def test_the_demo_model_needs_nothing() -> None:
    assert plan(model, {"driver": "none", "model": "demo"}, fresh()) == []


def test_a_fresh_host_downloads_its_model_as_the_services_user() -> None:
    planned = plan(model, {"driver": "none"}, fresh())
    lines = named(planned, "Download and verify").commands
    assert lines[0].startswith(
        "cd / && runuser -u metalscribe -- env METALSCRIBE_STATE_DIR=/var/lib/metalscribe /opt/metalscribe/releases/"
    )
    assert lines[0].endswith(
        "/venv/bin/metalscribe model download large-v3-turbo@0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf"
    )
    assert " model.bin=e76620f83d5f5b69efd3d87e3dc180c1bd21df9fbebacfd4335e5e1efcc018da < " in commands(planned)


def test_a_verified_model_is_left_alone() -> None:
    files = {"model.bin": {"size": 5, "mtime_ns": 1700000000123456789, "sha256": "a" * 64}}
    answer = ["5 1700000000.1234567890 model.bin", json.dumps({"files": files})]
    planned = plan(model, {"driver": "none"}, fresh() | {"-mindepth 1 -maxdepth 1 -printf": answer})
    assert not any(operation.changes for operation in planned)


def test_a_folder_is_uploaded(folder: Path) -> None:
    planned = plan(model, {"driver": "none", "model_path": str(folder)}, fresh())
    assert "WhisperSpec" in named(planned, "Upload and verify").files["/opt/metalscribe/incoming/piece"]


def test_the_source_is_the_operators_choice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_model = folder_model(folder)
    monkeypatch.setattr(deploy_module, "downloaded_model", lambda _: local_model)
    source = deploy_module.model_source
    assert source(data(), "some@0") is None
    uploaded = source(data(model_source="upload"), "some@0")
    assert uploaded is not None
    assert [item.name for item in uploaded()] == ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]


def test_a_model_comes_from_the_bundle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    name = folder_name(pinned("tiny.en"))
    (bundle / "models").mkdir(parents=True)
    folder.rename(bundle / "models" / name)
    items = model_uploads(LocalModel(bundle / "models" / name, name))
    sums = {f"models/{name}/{item.name}": item.sha256 for item in items} | {
        "wheels/m.whl": "0" * 64,
        "wheels/uv.whl": "0" * 64,
    }
    (bundle / "SHA256SUMS").write_text("".join(f"{digest}  {path}\n" for path, digest in sums.items()))
    description = {
        "format": 1,
        "version": "1",
        "source": "",
        "wheel": "m.whl",
        "uv": "uv.whl",
        "pythons": ["3.11"],
        "extras": [],
    }
    (bundle / "bundle.json").write_text(json.dumps(description))
    assert read_bundle(bundle).models == (name,)

    source = deploy_module.model_source(data(model="tiny.en", bundle=bundle), name)
    assert source is not None
    assert source() == items
    (bundle / "models" / name / "config.json").write_text("damaged")
    with pytest.raises(DeployError, match=r"is damaged: models/\S+/config\.json has another SHA-256"):
        source()
    with pytest.raises(
        DeployError, match=rf"does not have the model small, only {name}: .* --model small, or set model_source=upload"
    ):
        deploy_module.model_source(data(model="small", bundle=bundle), folder_name(pinned("small")))
    elsewhere = data(model="small", bundle=bundle, model_source="upload")
    assert deploy_module.model_source(elsewhere, folder_name(pinned("small"))) is not None
