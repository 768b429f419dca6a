"""Building a release on a host."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from pyinfra.api.command import FileUploadCommand, QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host, state

from metalscribe_provision.common import ROOT, USER
from metalscribe_provision.runtime import uv
from metalscribe_provision.runtime.facts import CompleteReleases
from metalscribe_provision.runtime.release import Release
from metalscribe_provision.runtime.upload import INCOMING, Upload, uploaded

BUILD_SCRIPT: Final = Path(__file__).with_name("build-release.sh")


@operation()
def built(release: Release, wheels: Sequence[Upload] = ()) -> Generator[StringCommand | FileUploadCommand]:
    """A release that is on the host, complete, with nothing built if it is.

    Args:
        release: what is to be there.
        wheels: of a bundle, all that the release needs and uv's; by default the host goes to the package index.
    """
    if release.id in (host.get_fact(CompleteReleases) or []):
        host.noop(f"release {release.id} is complete")
        return
    bootstrap = uv.BOOTSTRAP.read_text(encoding="utf-8")
    version, _ = uv.pinned_uv(bootstrap)
    uploads = [
        Upload.text("build-release.sh", BUILD_SCRIPT.read_text(encoding="utf-8")),
        Upload.text("requirements.txt", release.requirements),
        Upload.text("release.json", release.describe()),
        Upload.content(release.wheel.name, release.wheel.read_bytes()),
        *(wheels or [Upload.text("bootstrap.txt", bootstrap)]),
    ]
    source = "bundle" if wheels else "index"
    if state.is_executing:
        size = sum(upload.size for upload in uploads) / 1e6
        host.log(f"Building release {release.id} from the {source}; {size:.0f} MB to bring")
    folder = incoming(release)
    yield from uploaded(uploads, folder)
    arguments = (str(ROOT), str(folder), release.id, release.python.path, version, USER, source)
    yield StringCommand("sh", QuoteString(str(folder / "build-release.sh")), *map(QuoteString, arguments))
    yield StringCommand("rm", "-rf", QuoteString(str(INCOMING)))


def incoming(release: Release) -> PurePosixPath:
    """Where what a release is built from waits on the host."""
    return INCOMING / release.id
