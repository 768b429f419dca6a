"""Refuse a support bundle that has a secret in it: ``scrub.py BUNDLE.tar.gz``, with the host's credentials on the standard input.

The credentials are a JSON object, a file's path to its text. Looked for are: the text of a file that holds one secret and
nothing else; in a file of settings (``acme_dns.ini``, JSON) the values of those whose names say that they are secret; a
URL's password by itself; and whatever looks like a secret by its shape, whoever it belongs to. Exit status: 0 nothing was
found, 1 something was, and the standard error names the file and the kind, never the secret; 2 the bundle cannot be
checked, which counts as not clean.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SHORTEST = 8
"""A shorter credential cannot be told from ordinary text."""

_LINE_OF_A_KEY = 16

_SETTING = re.compile(r"""["']?(?P<name>[A-Za-z][\w.-]*)["']?\s*[:=]\s*["']?(?P<value>[^\s"',]+)["']?,?""")
"""A line of an INI file, or of JSON that is written in lines."""

_SECRET_NAME = re.compile(r"secret|token|password|passwd|key(?!_?id)", re.IGNORECASE)

_SHAPES = {
    "a private key": re.compile(rb"PRIVATE KEY"),
    "an API key": re.compile(rb"msk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}"),
    "an Authorization header": re.compile(rb"""authorization["']?\s*[:=]\s*["']?(?!\$)[a-z0-9._~+/-]""", re.IGNORECASE),
    "an API key's header": re.compile(rb"""x-api-key["']?\s*[:=]\s*["']?(?!\$)[a-z0-9._~+/-]""", re.IGNORECASE),
    "a URL with a password": re.compile(rb"[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:(?!\*+@)[^\s/@'\"]+@", re.IGNORECASE),
}


def main() -> int:
    """Look at the bundle that the command line names; see the module's text."""
    try:
        credentials = json.load(sys.stdin)
        found = list(problems(Path(sys.argv[1]), credentials))
    except (OSError, EOFError, ValueError, tarfile.TarError, IndexError) as error:
        sys.stderr.write(f"the bundle cannot be checked: {type(error).__name__}: {error}\n")
        return 2
    sys.stderr.writelines(f"{problem}\n" for problem in found)
    return 1 if found else 0


def problems(bundle: Path, credentials: Mapping[str, str]) -> Iterator[str]:
    """What should not be in the bundle, one line for each file and kind.

    Args:
        bundle: the gzipped tar archive.
        credentials: the host's, path to text.

    Raises:
        OSError, EOFError, tarfile.TarError: it cannot be read.
    """
    wanted = set()
    for path, text in credentials.items():
        found = set(secrets_in(text))
        if any(len(secret) < _SHORTEST for secret in found):
            yield f"{path} has a secret shorter than {_SHORTEST} characters, which cannot be looked for; choose a longer one"
        wanted |= {secret.encode() for secret in found if len(secret) >= _SHORTEST}
    with tarfile.open(bundle, "r:gz") as archive:
        for member in archive:
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                yield f"{member.name}: not a plain file"
                continue
            data = content.read()
            if any(secret in data for secret in wanted):
                yield f"{member.name}: a credential of this host"
            yield from (f"{member.name}: {kind}" for kind, shape in _SHAPES.items() if shape.search(data))


def secrets_in(text: str) -> Iterator[str]:
    """The secrets in the text of a credential."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    alone = len(lines) == 1
    if alone:
        yield lines[0]
    for line in lines:
        setting = _SETTING.fullmatch(line)
        if setting is None:
            # Comments and sections of a file of settings are no secrets; a line of a key or of JSON may be one.
            secret = line if len(line) >= _LINE_OF_A_KEY and line[0] not in "#;[" else ""
        else:
            secret = setting["value"] if _SECRET_NAME.search(setting["name"]) else ""
        if secret and not (alone and len(secret) < _SHORTEST):  # a key by itself may look like NAME=VALUE
            yield secret
        yield from _passwords(line)


def _passwords(text: str) -> Iterator[str]:
    for url in re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"']+", text):
        if password := urlsplit(url).password:
            yield from (password, unquote(password))


if __name__ == "__main__":
    sys.exit(main())
