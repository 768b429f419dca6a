"""The support bundle: what is collected on a host, and what must not be in it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ops_host import OPS, load

scrub = load("files/scrub.py")

PATH = "/etc/metalscribe/credentials/metalscribe_api_key"
KEY = "9mX2-host_key=with+base64/characters=="


def bundle(folder: Path, **files: str) -> Path:
    archive = folder / "bundle.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"support/{name}.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return archive


@pytest.mark.parametrize(
    ("credential", "leak"),
    [
        (KEY, f"Nov 20 host metalscribe: {KEY}"),
        (f"{KEY}\n", f"x{KEY}x"),
        ("postgresql+psycopg://scribe:p%40ssw0rd-long@db/scribe", "password is p@ssw0rd-long"),
        ("redis://:redis-pass-word@cache:6379/0", "AUTH redis-pass-word"),
        ("# Cloudflare\ndns_cloudflare_api_token = 0123456789abcdef\n", "token 0123456789abcdef"),
        (
            "dns_rfc2136_server = 192.0.2.1\ndns_rfc2136_port = 53\ndns_rfc2136_secret = 4q4wM/2I180UXoMyN4INVhJNi8V9BCV+jMw2mXgZw==\n",
            "4q4wM/2I180UXoMyN4INVhJNi8V9BCV+jMw2mXgZw==",
        ),
        (
            '{\n  "client_id": "someone",\n  "private_key_id": "abcdef",\n  "client_secret": "0123456789"\n}\n',
            "0123456789",
        ),
    ],
)
def test_a_credential_of_the_host_is_found(tmp_path: Path, credential: str, leak: str) -> None:
    clean = bundle(tmp_path, journal="192.0.2.1 someone asked for abcdef on port 53")
    assert list(scrub.problems(clean, {PATH: credential})) == []
    leaky = bundle(tmp_path, settings="fine", journal=leak)
    assert list(scrub.problems(leaky, {PATH: credential})) == ["support/journal.txt: a credential of this host"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN EC PRIVATE KEY-----\nMHc", "a private key"),
        (f"made msk_abcd0123_{'x' * 43} today", "an API key"),
        ("Authorization: Bearer abcdef", "an Authorization header"),
        ('{"authorization": "Basic eA=="}', "an Authorization header"),
        ("x-api-key: abcdef", "an API key's header"),
        ("postgresql://scribe:hunter2@db/scribe", "a URL with a password"),
    ],
)
def test_what_looks_like_a_secret_is_found(tmp_path: Path, text: str, kind: str) -> None:
    assert list(scrub.problems(bundle(tmp_path, nginx=text), {})) == [f"support/nginx.txt: {kind}"]


@pytest.mark.parametrize(
    "text",
    [
        "ssl_certificate_key /etc/metalscribe/tls/current/privkey.pem;",
        'proxy_set_header Authorization "";\nproxy_set_header X-API-Key "";',
        "if ($http_authorization$http_x_api_key) { return 403; }",
        "database_url ******** credential file",
        "postgresql://scribe:********@db/scribe",
        "https://10.0.0.1:443/readyz user@host",
        "msk_0 is no key",
    ],
)
def test_what_only_talks_of_secrets_may_stay(tmp_path: Path, text: str) -> None:
    assert list(scrub.problems(bundle(tmp_path, nginx=text), {PATH: KEY})) == []


def test_a_credential_too_short_to_look_for_is_refused(tmp_path: Path) -> None:
    [problem] = scrub.problems(bundle(tmp_path, x="y"), {PATH: "abc"})
    assert problem.startswith(f"{PATH} has a secret shorter than 8 characters")
    assert "abc" not in problem


def test_links_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bundle.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("support/shadow")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(member)
    assert list(scrub.problems(archive, {})) == ["support/shadow: not a plain file"]


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b"])
def test_what_cannot_be_read_is_not_clean(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.tar.gz").write_bytes(content)
    assert _scrub(tmp_path / "bundle.tar.gz", "{}").returncode == 2
    assert _scrub(tmp_path / "missing", "{}").returncode == 2
    assert _scrub(bundle(tmp_path, x="y"), "not json").returncode == 2


def test_it_names_the_file_and_never_the_secret(tmp_path: Path) -> None:
    done = _scrub(bundle(tmp_path, journal=KEY), json.dumps({PATH: KEY}))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "support/journal.txt: a credential of this host\n")
    assert _scrub(bundle(tmp_path, journal="fine"), json.dumps({PATH: KEY})).returncode == 0


def test_collecting_survives_whatever_is_missing_or_fails(tmp_path: Path) -> None:
    """On a machine that has some of the programs: a file for each topic all the same, and no word of a state directory's content."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "journalctl": 'echo "journal $*"',
        "systemctl": "exit 3",
        "nginx": "kill -9 $$",
        "systemd-analyze": "echo score",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    archive = tmp_path / "bundle.tar.gz"
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "TMPDIR": str(tmp_path), "LC_ALL": "C"}
    subprocess.run(
        ["sh", OPS / "files/collect.sh", "48", archive], env=environment, check=True, capture_output=True, timeout=60
    )
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        texts = {Path(name).stem: content.read().decode() for name, content in files.items() if content}
    topics = "certificates doctor firewall gpu journal-metalscribe journal-nginx kernel libraries nginx nginx-errors packages release resources settings system unit unit-security"
    assert set(texts) == set(topics.split())
    assert "journal --unit metalscribe.service --since -48h" in texts["journal-metalscribe"]
    assert "[exit status 3]" in texts["unit"]
    assert "[exit status 137]" in texts["nginx"]
    assert "[exit status 0]" in texts["resources"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "bundle.tar.gz"]  # its own folder is gone
    assert archive.stat().st_mode & 0o077 == 0


def _scrub(archive: Path, credentials: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, OPS / "files/scrub.py", archive],
        input=credentials,
        check=False,
        capture_output=True,
        text=True,
    )
