"""Bringing a model to a host. Whatever writes into the service's folder runs as the service's user, never as root."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Final

from pyinfra.api.command import FileUploadCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import DeployError
from pyinfra.api.operation import operation
from pyinfra.context import host

from metalscribe_provision.common import MODELS, STATE, USER
from metalscribe_provision.model.facts import RECORDS, HostModel
from metalscribe_provision.runtime.facts import FilesIn
from metalscribe_provision.runtime.release import Release
from metalscribe_provision.runtime.upload import INCOMING, Upload, uploaded

Commands = Generator[StringCommand | FileUploadCommand]

RECORD_SCRIPT: Final = Path(__file__).with_name("record.py")
_AS_USER: Final = ("cd", "/", "&&", "runuser", "-u", USER, "--")


@operation()
def downloaded(folder: str, reference: str, release: Release, sha256: Mapping[str, str]) -> Commands:
    """A model that the host downloads from the hub, with its release's own code: pinned, continued where it was cut off.

    Args:
        folder: the name that the download gives it.
        reference: what to download, with its commit.
        release: whose code does it.
        sha256: known digests of its files.
    """
    if host.get_fact(HostModel, folder=folder).intact:
        host.noop(f"model {folder} is verified and untouched")
        return
    state = QuoteString(f"METALSCRIBE_STATE_DIR={STATE}")
    yield StringCommand(
        *_AS_USER, "env", state, str(release.path / "venv/bin/metalscribe"), "model", "download", QuoteString(reference)
    )
    yield from _recorded(folder, release, sha256)


@operation()
def brought(folder: str, uploads: Callable[[], list[Upload]], release: Release) -> Commands:
    """A model that comes from the machine that deploys; it appears in its place complete and verified.

    Args:
        folder: its name on the host.
        uploads: its files; asked for only when they are needed, since they may have to be downloaded first.
        release: the host's.
    """
    if host.get_fact(HostModel, folder=folder).intact:
        host.noop(f"model {folder} is verified and untouched")
        return
    # First, so that a plan ends here: `--dry` downloads nothing.
    yield StringCommand("install", "-d", "-m", "700", QuoteString(str(INCOMING)))
    try:
        wanted = uploads()
    except DeployError as error:
        yield StringCommand("printf '%s\\n'", QuoteString(str(error)), ">&2; exit 1")
        return
    target, arriving = str(MODELS / folder), MODELS / f".{folder}.arriving"
    there = host.get_fact(FilesIn, path=target)
    if any(there.get(upload.name) != (upload.size, upload.sha256) for upload in wanted):
        host.log(f"Uploading model {folder} ({sum(upload.size for upload in wanted) / 1e6:.0f} MB)")
        yield from uploaded(wanted, arriving, user=USER)
        move = 'rm -rf "$2" && mv -T "$1" "$2"'
        yield StringCommand(
            *_AS_USER, "sh", "-c", QuoteString(move), "sh", QuoteString(str(arriving)), QuoteString(target)
        )
    yield from _recorded(folder, release, {upload.name: upload.sha256 for upload in wanted})


def _recorded(folder: str, release: Release, sha256: Mapping[str, str]) -> Commands:
    """Read the whole model once more, and note what was found, so that the next deploys need not."""
    script, record, new = INCOMING / "record.py", RECORDS / f"{folder}.json", RECORDS / f".{folder}.json.new"
    yield StringCommand("install", "-d", "-m", "700", QuoteString(str(INCOMING)))
    yield FileUploadCommand(str(RECORD_SCRIPT), str(script))
    yield StringCommand("install", "-d", "-m", "755", QuoteString(str(RECORDS)))
    expected = (QuoteString(f"{name}={digest}") for name, digest in sorted(sha256.items()))
    yield StringCommand(
        *(*_AS_USER, QuoteString(release.python.path), "-I", "-", QuoteString(str(MODELS / folder)), *expected),
        *("<", QuoteString(str(script)), ">", QuoteString(str(new)), "&&", "chmod", "644", QuoteString(str(new))),
        *("&&", "mv", "-f", QuoteString(str(new)), QuoteString(str(record))),
    )
    yield StringCommand("rm", "-rf", QuoteString(str(INCOMING)))
