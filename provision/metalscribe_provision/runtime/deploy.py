"""The runtime of a host: user, folders, and the release that it is to run. Which release serves is the service's deploy's business."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.context import host
from pyinfra.operations import files, server

from metalscribe_provision.bundle.contents import read_bundle
from metalscribe_provision.bundle.wheels import wheels_for
from metalscribe_provision.common import MODELS, RELEASES, ROOT, STATE, USER, packages, proven
from metalscribe_provision.hostdata import HostData
from metalscribe_provision.runtime import uv
from metalscribe_provision.runtime.facts import CompleteReleases
from metalscribe_provision.runtime.operations import built
from metalscribe_provision.runtime.release import Release, release_for
from metalscribe_provision.runtime.upload import INCOMING, Upload


@deploy("Runtime")
def runtime(data: HostData) -> None:
    """Bring the host's release to it, beside the one that may serve there now."""
    release = release_for(data)
    complete = release.id in (host.get_fact(CompleteReleases) or [])
    wheels = () if complete else bundle_wheels(data, release)

    packages(name="Python", names=_packages(data, release))
    server.group(name="Group", group=USER, system=True)
    server.user(  # noqa: S604  (its shell is a parameter like any other)
        name="User",
        user=USER,
        group=USER,
        home=str(STATE),
        shell="/usr/sbin/nologin",
        system=True,
        ensure_home=False,
        comment="metalscribe",
    )
    for folder in (ROOT, RELEASES):
        files.directory(name=f"Folder {folder}", path=str(folder), user="root", group="root", mode="755")
    # Keys, recordings and transcripts: nobody else's business.
    for folder in (STATE, MODELS):
        files.directory(name=f"Folder {folder}", path=str(folder), user=USER, group=USER, mode="700")
    built(name="Release", release=release, wheels=wheels)
    files.directory(name="Leftovers of an interrupted deploy", path=str(INCOMING), present=False)
    proven(name="Release is complete", problem=_problem(release))


def bundle_wheels(data: HostData, release: Release) -> Sequence[Upload]:
    """What a host without internet installs a release from: the wheels that it needs, of its bundle, intact; () without a bundle.

    Raises:
        DeployError: the bundle lacks something, or is damaged.
    """
    if data.bundle is None:
        return ()
    bundle = read_bundle(data.bundle)
    version, digests = uv.pinned_uv(uv.BOOTSTRAP.read_text(encoding="utf-8"))
    if bundle.sums[bundle.uv] not in digests:
        raise DeployError(
            f"the bundle {bundle.folder} has another uv than {version}, which bootstrap.txt pins: make it again with `make bundle`"
        )
    names = [
        bundle.uv,
        *bundle.names_of(wheels_for(uv.locked(release.extras), release.python.version), release.python.version),
    ]
    bundle.check(names)
    return [Upload(name, bundle.path(name), bundle.path(name).stat().st_size, bundle.sums[name]) for name in names]


def _packages(data: HostData, release: Release) -> list[str]:
    # With a bundle uv comes as a file, so nothing is missing where venv is.
    wanted = [name for name in release.python.packages if data.bundle is None or not name.endswith("-venv")]
    return wanted if data.bundle is not None else [*wanted, "ca-certificates"]


def _problem(release: Release) -> Callable[[], str | None]:
    def problem() -> str | None:
        if release.id in (host.get_fact(CompleteReleases) or []):
            return None
        return f"release {release.id} is not complete in {RELEASES}; run the deploy again"

    return problem
