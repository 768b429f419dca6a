"""Downloads from a stand-in for the model hub: a real HTTP server that speaks the few calls that huggingface_hub makes.

It stands in for the hub because tests have no internet; the client is the real huggingface_hub. Like the hub it answers
``/api/models/…`` with sizes and checksums, ``/…/resolve/…`` for small files with the bytes and for large ones with a redirect
to signed storage, which honours ranges.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from typer.testing import CliRunner

from metalscribe.cli.model import app as cli
from metalscribe.engine import catalog, weights
from metalscribe.engine.download import download
from metalscribe.engine.manifest import MANIFEST, read_manifest
from metalscribe.errors import ConfigurationError, InvalidParameter, ModelMissing, StorageFull

REPOSITORY = "owner/faster-whisper-test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"
# Larger than two of the blocks (10 MiB) that huggingface_hub writes, so that an interruption leaves something behind.
WEIGHTS = random.Random(1).randbytes(24 << 20)
SMALL_FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"added_tokens": []}',
    "vocabulary.json": json.dumps([f"t{index}" for index in range(51864)] + ["<|en|>"]).encode(),
    "preprocessor_config.json": b'{"feature_size": 80}',
}
TARGET = f"owner--faster-whisper-test@{COMMIT[:12]}"


@dataclass
class Hub:
    """What the stand-in holds, what it was asked, and how it misbehaves."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {"model.bin": WEIGHTS, **SMALL_FILES, "README.md": b"#"})
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT, OLDER: OLDER})
    altered: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    storage: str = ""
    refuse: tuple[int, str] | None = None
    answer: bytes | None = None
    stop_after: int | None = None
    hold: threading.Event = field(default_factory=threading.Event)

    def gets(self, name: str) -> list[str | None]:
        """List the Range headers of the requests for a file's bytes."""
        return [
            ranges for path, ranges, _ in self.asked if path == f"/storage/{name}" or path.endswith(f"{COMMIT}/{name}")
        ]


def make_app(hub: Hub) -> FastAPI:  # noqa: C901  (one function per address)
    app = FastAPI()

    @app.middleware("http")
    async def note(request: Request, call_next: Callable[[Request], object]) -> object:
        hub.asked.append((request.url.path, request.headers.get("range"), request.headers.get("authorization")))
        return await call_next(request)  # type: ignore[misc]

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    def info(owner: str, name: str, revision: str = "main") -> Response:
        if hub.answer is not None:
            return Response(hub.answer)
        if hub.refuse is not None:
            status, code = hub.refuse
            return JSONResponse({"error": code}, status, headers={"X-Error-Code": code} if code else {})
        if f"{owner}/{name}" != REPOSITORY:
            return JSONResponse({"error": "Repository not found"}, 401, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in hub.commits:
            return JSONResponse({"error": "Revision not found"}, 404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for file, content in hub.files.items():
            size = hub.sizes.get(file, len(content))
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            sibling: dict[str, object] = {"rfilename": file, "size": size, "blobId": blob}
            if file == "model.bin":
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 135}
            siblings.append(sibling)
        return JSONResponse({"id": REPOSITORY, "sha": hub.commits[revision], "siblings": siblings})

    @app.get(f"/{REPOSITORY}/resolve/{{commit}}/{{file}}")
    def resolve(commit: str, file: str) -> Response:
        content = hub.altered.get(file, hub.files[file])
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(content))}
        if file == "model.bin":
            return RedirectResponse(f"{hub.storage}/storage/{file}", 302, headers=headers)
        return Response(content, headers=headers)

    @app.get("/storage/{file}")
    def storage(file: str, request: Request) -> Response:
        content = hub.altered.get(file, hub.files[file])
        ranges = request.headers.get("range")
        start = int(ranges.removeprefix("bytes=").removesuffix("-")) if ranges else 0
        headers = {"Content-Length": str(len(content) - start), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if ranges:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop, hub.stop_after = hub.stop_after, None
        end = len(content) if stop is None else stop

        def body() -> Iterator[bytes]:
            for offset in range(start, end, 1 << 18):
                yield content[offset : min(offset + (1 << 18), end)]
            if end < len(content):
                hub.hold.wait(timeout=60)
                raise ConnectionError("the stand-in hangs up")

        return StreamingResponse(body(), 206 if ranges else 200, headers=headers)

    return app


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = uvicorn.Server(uvicorn.Config(make_app(hub), port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    hub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    hub.hold.set()
    try:
        yield hub
    finally:
        hub.hold.set()
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        pause.wait(0.01)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as running:
        yield running


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("HF_", "METALSCRIBE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("METALSCRIBE_STATE_DIR", str(tmp_path))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


def visible(models_dir: Path) -> list[str]:
    return sorted(path.name for path in models_dir.iterdir() if not path.name.startswith("."))


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_download_is_complete_recorded_and_found(hub: Hub, models_dir: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    found = download(REPOSITORY, models_dir, endpoint=hub.url, progress=lambda *step: seen.append(step))
    assert found.path == models_dir / TARGET
    expected = {"model.bin": WEIGHTS, **SMALL_FILES}
    assert {path.name for path in found.path.iterdir()} == {*expected, MANIFEST}, "no README, nothing left over"
    for name, content in expected.items():
        assert (found.path / name).read_bytes() == content
        assert seen[-1][1] == seen[-1][2]
        assert (name, len(content), len(content)) in seen
    manifest = read_manifest(found.path)
    assert manifest is not None
    assert (manifest.repository, manifest.commit, manifest.revisions) == (REPOSITORY, COMMIT, ())
    assert {name: (record.size, record.sha256) for name, record in manifest.files.items()} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in expected.items()
    }
    assert weights.resolve(REPOSITORY, models_dir, offline=True) == found
    assert all(check.ok for check in weights.verify(found.path))
    assert weights.describe(found.path).name == REPOSITORY
    assert visible(models_dir) == [TARGET]


def test_a_second_download_moves_no_file(hub: Hub, models_dir: Path) -> None:
    first = download(REPOSITORY, models_dir, endpoint=hub.url)
    assert len(hub.gets("model.bin")) == 2, "the redirect and the storage"
    assert download(REPOSITORY, models_dir, endpoint=hub.url) == first
    assert len(hub.gets("model.bin")) == 2
    hub.asked.clear()
    assert download(f"{REPOSITORY}@{COMMIT}", models_dir, endpoint=hub.url, offline=True) == first
    assert hub.asked == [], "a pinned commit that is here asks nobody"


def test_a_branch_is_remembered_with_the_commit_it_led_to(hub: Hub, models_dir: Path) -> None:
    download(REPOSITORY, models_dir, revision=OLDER, endpoint=hub.url)
    download(f"{REPOSITORY}@{COMMIT}", models_dir, endpoint=hub.url)
    with pytest.raises(ModelMissing, match="at revision main"):
        weights.resolve(f"{REPOSITORY}@main", models_dir)
    found = download(f"{REPOSITORY}@main", models_dir, endpoint=hub.url)
    assert found.path.name == TARGET
    assert weights.resolve(f"{REPOSITORY}@main", models_dir) == found
    assert visible(models_dir) == [TARGET, f"owner--faster-whisper-test@{OLDER[:12]}"]


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_continued_with_a_range(hub: Hub, models_dir: Path) -> None:
    hub.stop_after = 15 << 20
    found = download(REPOSITORY, models_dir, endpoint=hub.url)
    assert (found.path / "model.bin").read_bytes() == WEIGHTS
    ranges = [header for header in hub.gets("model.bin") if header]
    assert set(ranges) == {f"bytes={10 << 20}-"}


def test_a_killed_download_is_continued_by_the_next(hub: Hub, models_dir: Path) -> None:
    hub.stop_after = 15 << 20
    hub.hold.clear()
    script = f"from pathlib import Path; from metalscribe.engine.download import download; download({REPOSITORY!r}, Path({str(models_dir)!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "HF_ENDPOINT": hub.url})
    try:
        wait_until(lambda: any(path.stat().st_size >= 10 << 20 for path in models_dir.glob(".*/model.bin.*.partial")))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        hub.hold.set()
    assert visible(models_dir) == []
    with pytest.raises(ModelMissing, match="not on this machine"):
        weights.resolve(REPOSITORY, models_dir)
    hub.asked.clear()
    found = download(REPOSITORY, models_dir, endpoint=hub.url)
    assert (found.path / "model.bin").read_bytes() == WEIGHTS
    assert all(header == f"bytes={10 << 20}-" for header in hub.gets("model.bin"))
    assert hub.gets("config.json") == [], "it was complete already"
    assert sorted(path.name for path in models_dir.iterdir()) == [".owner--faster-whisper-test.lock", TARGET]


def test_a_partial_file_of_other_content_is_not_continued(hub: Hub, models_dir: Path) -> None:
    unfinished = models_dir / f".{TARGET}.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / f"model.bin.{'0' * 64}.partial").write_bytes(b"x" * 1000)
    right = unfinished / f"model.bin.{hashlib.sha256(WEIGHTS).hexdigest()}.partial"
    right.write_bytes(WEIGHTS + b"too long")
    found = download(REPOSITORY, models_dir, endpoint=hub.url)
    assert set(hub.gets("model.bin")) == {None}
    assert {path.name for path in found.path.iterdir()} == {"model.bin", *SMALL_FILES, MANIFEST}


def test_two_downloads_at_once_fetch_everything_once(hub: Hub, models_dir: Path) -> None:
    barrier = threading.Barrier(2)
    found: list[weights.ModelFiles] = []

    def one() -> None:
        barrier.wait(timeout=20)
        found.append(download(REPOSITORY, models_dir, endpoint=hub.url))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(hub.gets("model.bin")) == 2, "one redirect, one file"
    assert all(check.ok for check in weights.verify(found[0].path))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.bin", "config.json"])
def test_a_wrong_checksum_is_deleted_and_told(hub: Hub, models_dir: Path, name: str) -> None:
    right = hub.files[name]
    hub.altered[name] = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(
        ModelMissing, match=rf"{re.escape(name)} of .* wrong checksum and was deleted; run the download again"
    ):
        download(REPOSITORY, models_dir, endpoint=hub.url)
    assert visible(models_dir) == []
    assert not list(models_dir.glob(f".*/{name}*"))
    hub.altered.clear()
    assert (download(REPOSITORY, models_dir, endpoint=hub.url).path / name).read_bytes() == right


def test_a_damaged_download_is_mended_without_fetching_what_is_good(hub: Hub, models_dir: Path) -> None:
    found = download(f"{REPOSITORY}@{COMMIT}", models_dir, endpoint=hub.url)
    with (found.path / "model.bin").open("r+b") as handle:
        handle.write(bytes([WEIGHTS[0] ^ 1]))
    assert [check.name for check in weights.verify(found.path) if not check.ok] == ["model.bin"]
    (found.path / "tokenizer.json").unlink()
    hub.asked.clear()
    mended = download(f"{REPOSITORY}@{COMMIT}", models_dir, endpoint=hub.url)
    assert all(check.ok for check in weights.verify(mended.path))
    assert (len(hub.gets("model.bin")), len(hub.gets("tokenizer.json")), len(hub.gets("config.json"))) == (2, 1, 0)


def test_weights_that_differ_from_the_known_digest_are_not_taken(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = catalog.KnownModel("test", REPOSITORY, 1, revision=COMMIT, sha256="0" * 64)
    monkeypatch.setattr(catalog, "KNOWN_MODELS", (known,))
    with pytest.raises(ModelMissing, match=r"not the one known for commit .* mirror may be altered"):
        download("test", models_dir, endpoint=hub.url)
    assert hub.gets("model.bin") == []
    right = catalog.KnownModel("test", REPOSITORY, 1, revision=COMMIT, sha256=hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(catalog, "KNOWN_MODELS", (right,))
    hub.commits["main"] = OLDER
    found = download("test", models_dir, endpoint=hub.url)
    assert (found.name, found.path.name) == ("test", TARGET), "the pinned commit, not where the branch is now"


def test_another_commit_than_the_one_asked_for_is_not_taken(hub: Hub, models_dir: Path) -> None:
    hub.commits[COMMIT] = OLDER
    with pytest.raises(ModelMissing, match=f"Asked for .* at {COMMIT}, the hub answered with {OLDER}; not taken"):
        download(f"{REPOSITORY}@{COMMIT}", models_dir, endpoint=hub.url)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_offline_asks_nobody(hub: Hub, models_dir: Path) -> None:
    with pytest.raises(ModelMissing, match="METALSCRIBE_OFFLINE forbids downloading"):
        download(REPOSITORY, models_dir, offline=True, endpoint=hub.url)
    assert hub.asked == []
    assert not models_dir.exists()


@pytest.mark.parametrize(
    ("refuse", "sentence"),
    [
        ((403, "GatedRepo"), "is gated: accept its terms on 127.0.0.1, then set HF_TOKEN"),
        ((401, "GatedRepo"), "is gated"),
        ((404, "RepoNotFound"), "127.0.0.1 has no model owner/faster-whisper-test, or it is private"),
        ((403, ""), r"127.0.0.1 refused access to .* \(403\): check that HF_TOKEN is valid"),
        ((429, ""), r"no more requests for now \(429\)"),
        ((503, ""), "127.0.0.1 answered 503 for owner/faster-whisper-test; try again later"),
    ],
)
def test_each_refusal_has_its_sentence(hub: Hub, models_dir: Path, refuse: tuple[int, str], sentence: str) -> None:
    hub.refuse = refuse
    with pytest.raises(ModelMissing, match=sentence) as caught:
        download(REPOSITORY, models_dir, endpoint=hub.url)
    assert "\n" not in caught.value.detail


def test_unknown_repository_and_revision(hub: Hub, models_dir: Path) -> None:
    with pytest.raises(ModelMissing, match="has no model owner/other, or it is private"):
        download("owner/other", models_dir, endpoint=hub.url)
    with pytest.raises(ModelMissing, match="owner/faster-whisper-test has no revision v9"):
        download(REPOSITORY, models_dir, revision="v9", endpoint=hub.url)


@pytest.mark.parametrize("answer", [b"<html>please log in</html>", b"[]", b"{}", b'{"id": "a/b", "sha": null}'])
def test_an_answer_that_is_no_hubs(hub: Hub, models_dir: Path, answer: bytes) -> None:
    hub.answer = answer
    with pytest.raises(ModelMissing, match="check HF_ENDPOINT"):
        download(REPOSITORY, models_dir, endpoint=hub.url)


def test_an_unreachable_hub(models_dir: Path) -> None:
    with serving(Hub()) as gone:
        url = gone.url
    with pytest.raises(ModelMissing, match=r"Cannot reach 127\.0\.0\.1 .*check network and proxy"):
        download(REPOSITORY, models_dir, endpoint=url)


@pytest.mark.parametrize("lacking", ["model.bin", "tokenizer.json", "vocabulary.json"])
def test_a_repository_without_a_whisper_model(hub: Hub, models_dir: Path, lacking: str) -> None:
    del hub.files[lacking]
    with pytest.raises(ModelMissing, match=f"not a CTranslate2 Whisper model: it has no {lacking}"):
        download(REPOSITORY, models_dir, endpoint=hub.url)


def test_a_full_disk_is_told_before_anything_is_fetched(hub: Hub, models_dir: Path) -> None:
    hub.sizes["model.bin"] = 1 << 60
    with pytest.raises(StorageFull, match=r"needs .* GB more than is here"):
        download(REPOSITORY, models_dir, endpoint=hub.url)
    assert hub.gets("config.json") == []


def test_a_models_directory_that_cannot_be_made(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelMissing, match="failed: Not a directory"):
        download(REPOSITORY, tmp_path / "file" / "models", endpoint=hub.url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_models_directory_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match="No permission"):
        download(REPOSITORY, tmp_path / "models", endpoint=hub.url)


def test_a_directory_is_not_downloaded(models_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="is a directory"):
        download(str(tmp_path), models_dir)


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub()) as storage:
        hub.storage = storage.url
        download(REPOSITORY, models_dir, endpoint=hub.url)
    assert {token for _, _, token in hub.asked} == {"Bearer hf_secret"}
    assert [(path, token) for path, _, token in storage.asked] == [("/storage/model.bin", None)]


# --- the command line -------------------------------------------------------------------------------------------------


def run(*arguments: str, hub: Hub | None = None) -> subprocess.CompletedProcess[str]:
    """Run the sub-application in a process of its own: huggingface_hub reads HF_ENDPOINT once, when it is imported."""
    environment = os.environ | ({"HF_ENDPOINT": hub.url} if hub is not None else {})
    command = [sys.executable, "-c", "from metalscribe.cli.model import app; app()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_download_list_and_verify_from_the_command_line(hub: Hub, models_dir: Path) -> None:
    result = run("download", REPOSITORY, "--json", hub=hub)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"name": REPOSITORY, "revision": COMMIT, "path": str(models_dir / TARGET)}
    assert "model.bin" in result.stderr, "the progress bar"

    listed = CliRunner().invoke(cli, ["list", "--json"])
    by_name = {entry["name"]: entry for entry in json.loads(listed.stdout)}
    assert by_name[REPOSITORY]["here"][0]["revision"] == COMMIT[:12]
    assert by_name["large-v3-turbo"]["here"] == []
    assert by_name["large-v3-turbo"]["revision"]
    assert "demo" in by_name

    verified = CliRunner().invoke(cli, ["verify", "--json"])
    assert verified.exit_code == 0
    assert {report["name"]: report["ok"] for report in json.loads(verified.stdout)}[REPOSITORY]

    (models_dir / TARGET / "model.bin").write_bytes(WEIGHTS[:100])
    damaged = CliRunner().invoke(cli, ["verify"])
    assert damaged.exit_code == 1
    assert f"{REPOSITORY}: damaged\n  model.bin is truncated: 100 of 25,165,824 bytes" in damaged.stdout
    assert f"metalscribe model download {REPOSITORY}@{COMMIT}" in damaged.stdout
    assert CliRunner().invoke(cli, ["verify", REPOSITORY, "--json"]).exit_code == 1

    (models_dir / TARGET / MANIFEST).unlink()
    unknown = CliRunner().invoke(cli, ["verify"])
    assert unknown.exit_code == 1
    assert f"{MANIFEST} is missing or damaged" in unknown.stdout

    mended = run("download", f"{REPOSITORY}@{COMMIT}", hub=hub)
    assert mended.stdout == f"{REPOSITORY} at {COMMIT[:12]} is here and verified.\n"
    assert CliRunner().invoke(cli, ["verify"]).exit_code == 0


def test_the_table_for_people() -> None:
    result = run("list")
    assert result.returncode == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    line = next(line for line in lines if line[0] == "large-v3-turbo")
    assert line[1:] == ["mobiuslabsgmbh/faster-whisper-large-v3-turbo", "1.6", "GB", "many", "no", "0a363e9161cb"]


def test_errors_leave_the_commands_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(CliRunner().invoke(cli, ["verify", "base"]).exception, ModelMissing)
    monkeypatch.setenv("METALSCRIBE_OFFLINE", "true")
    offline = CliRunner().invoke(cli, ["download", "base"])
    assert isinstance(offline.exception, ModelMissing)
    assert "METALSCRIBE_OFFLINE" in offline.exception.detail


def test_hf_hub_offline_is_explained(hub: Hub) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", f"from metalscribe.cli.model import app; app(['download', {REPOSITORY!r}])"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert result.returncode != 0
    assert "HF_HUB_OFFLINE forbids downloading" in " ".join(result.stderr.split())
    assert hub.asked == []
