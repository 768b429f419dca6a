"""Recordings made to do harm: a 200 or a 4xx, never more, and nothing of them stays."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Service, running, send, silence, wait_for

pytestmark = pytest.mark.model

HEAVY = {"silence_12h_bomb.flac", "silence_1h.flac"}


@pytest.fixture(scope="module")
def target(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("hostile") / "state", IDLE_TIMEOUT_SECS=0, MAX_AUDIO_HOURS=2) as made:
        yield made


@pytest.mark.speech
def test_the_corpus(target: Service, data: Path, sample: bytes) -> None:
    client = target.client()
    assert send(client, sample).status_code == 200
    before = target.resident()
    paths = sorted(path for path in (data / "hostile").rglob("*") if path.is_file() and path.name != "make_hostile.sh")
    assert len(paths) >= 5
    # The long recordings of one speech in eight containers say nothing new after the first two.
    speeches = [path for path in paths if path.parent.name == "moon"]
    failed = {}
    for path in paths:
        content = path.read_bytes()
        if path in speeches:
            content = content[: len(content) // 12]
        answer = send(client, content, path.name, data={"vad": "true"})
        if not (answer.status_code == 200 or 400 <= answer.status_code < 500):
            failed[path.name] = (answer.status_code, answer.text)
        if answer.status_code != 200 and answer.headers["content-type"] != "application/problem+json":
            failed[path.name] = (answer.status_code, answer.headers["content-type"])
    assert not failed
    assert target.health()["status"] == "healthy"
    wait_for(lambda: target.resident() - before < 100 * 2**20, "the memory to be given back", 10)
    wait_for(target.uploads_are_gone, "the uploads to be removed")
    assert send(client, silence()).status_code == 200


@pytest.fixture
def canary() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield listener


def _references(url: str, path: Path) -> dict[str, bytes]:
    """Files of formats that refer to others."""
    playlist = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
    keyed = f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{url}key"\n#EXTINF:9,\n{url}a.ts\n#EXT-X-ENDLIST\n'
    alias = _mov_with_reference(url)
    return {
        "http.m3u8": playlist.format(url).encode(),
        "file.m3u8": playlist.format(f"file://{path}").encode(),
        "concat.m3u8": playlist.format(f"concat:{path}|{url}").encode(),
        "subfile.m3u8": playlist.format(f"subfile,,start,0,end,64,,:{path}").encode(),
        "keyed.m3u8": keyed.encode(),
        "master.m3u8": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}low.m3u8\n".encode(),
        "list.ffconcat": f"ffconcat version 1.0\nfile '{path}'\nfile '{url}'\n".encode(),
        "session.sdp": (
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {url.rsplit(':', 1)[1].strip('/')} RTP/AVP 0\n"
        ).encode(),
        "manifest.mpd": (
            '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file://' + str(path) + '">]>'
            f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{url}</BaseURL><Period>&x;</Period></MPD>'
        ).encode(),
        "meta.asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>'.encode(),
        "reference.ref": f"[Reference]\nRef1={url}\n".encode(),
        "reference.mov": alias,
        "picture.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode(),
    }


def _atom(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _mov_with_reference(url: str) -> bytes:
    """A QuickTime reference movie (``rmra``/``rdrf``), whose recording lies elsewhere."""
    location = url.encode() + b"\0"
    reference = _atom(b"rdrf", struct.pack(">I4sI", 0, b"url ", len(location)), location)
    return _atom(b"ftyp", b"qt  \0\0\0\0qt  ") + _atom(b"moov", _atom(b"rmra", _atom(b"rmda", reference)))


def test_references_are_not_followed(target: Service, canary: socket.socket, tmp_path: Path) -> None:
    word = f"canary-{secrets.token_hex(8)}"
    secret = tmp_path / "canary.txt"
    secret.write_text(f"{word}\n" * 20)
    url = f"http://127.0.0.1:{canary.getsockname()[1]}/"
    for name, content in _references(url, secret).items():
        for called in (name, "innocent.wav"):
            answer = send(target.client(), content, called)
            assert 400 <= answer.status_code < 500, (name, answer.text)
            assert word not in answer.text
    assert word not in target.log_path.read_text()
    with pytest.raises(BlockingIOError):
        canary.accept()


def test_endless_silence_is_cut_off_at_the_limit(target: Service, sample: bytes) -> None:
    """A WAV header that claims two gigabytes, and one that claims nothing, over the sample's few bytes."""
    head = silence()[:44]
    for size in (0, 0x7FFFFFFF, 0xFFFFFFFF):
        made = head[:4] + struct.pack("<I", size) + head[8:40] + struct.pack("<I", size) + b"\0" * 32_000
        answer = send(target.client(), made, "claims.wav")
        assert answer.status_code in {200, 422}
        if answer.status_code == 200:
            assert answer.json()["duration"] == pytest.approx(1.0, abs=0.05)
