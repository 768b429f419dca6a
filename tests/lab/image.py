"""The root file system that hosts start from: a fresh Debian 12, built once and kept.

A host has no way out, yet a fresh one still lacks nginx and the like. So the image carries an apt repository of its own with what the
deploys install (``INSTALLABLE`` and all that it depends on), and has nothing else in its sources: ``apt-get`` works as on any host, without
a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lab import sources

SUITE: Final = "bookworm"

BASE: Final = (
    *(
        "ca-certificates",
        "cron",
        "curl",
        "dbus",
        "iproute2",
        "iputils-ping",
        "kmod",
        "less",
        "libpam-systemd",
        "logrotate",
    ),
    *(
        "openssh-server",
        "pciutils",
        "procps",
        "python3",
        "sudo",
        "systemd",
        "systemd-resolved",
        "systemd-sysv",
        "tzdata",
        "udev",
    ),
)
"""What a fresh Debian 12 of a provider has, as far as it matters here."""

INSTALLABLE: Final = (
    *("certbot", "nftables", "nginx", "prometheus-node-exporter", "python3-venv", "unattended-upgrades"),
)
"""What deploys install on it: in the image's own repository, not installed."""

USER: Final = "deployer"
"""An account without rights of its own that may do everything with sudo and no password."""

REPOSITORY: Final = "srv/apt"

_TIMEOUT: Final = 1200.0  # seconds, for a slow mirror


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a kind of host consists of.

    Attributes:
        name: of the kind.
        installed: packages that a fresh one has.
        installable: packages that deploys install on it: in the image's own repository, not installed.
        files: path from the root, without its first slash → text; there before any of ``installed`` is.
    """

    name: str
    installed: tuple[str, ...] = BASE
    installable: tuple[str, ...] = INSTALLABLE
    files: Mapping[str, str] = field(default_factory=dict)


CONTAINER: Final = Recipe("container")


def cache_folder() -> Path:
    """Where images and bundles are kept: METALSCRIBE_LAB_CACHE, else ``.lab/cache`` in the checkout."""
    chosen = os.environ.get("METALSCRIBE_LAB_CACHE")
    return Path(chosen).absolute() if chosen else Path(__file__).resolve().parents[2] / ".lab" / "cache"


def key(recipe: Recipe = CONTAINER) -> str:
    """What names an image: a digest of everything that it is made by."""
    digest = hashlib.sha256(repr(recipe).encode())
    for module in (__file__, sources.__file__):
        digest.update(Path(module).read_bytes())
    return f"{SUITE}-{recipe.name}-{digest.hexdigest()[:16]}"


@contextmanager
def image(recipe: Recipe = CONTAINER) -> Iterator[Path]:
    """The image's root folder, built if it is not there yet; kept from being tidied away as long as the context lasts.

    Raises:
        RuntimeError: it could not be built; the message ends with mmdebstrap's own words.
    """
    with kept(f"{SUITE}-{recipe.name}", key(recipe), lambda building: _build(building, recipe)) as root:
        yield root


@contextmanager
def kept(kind: str, name: str, build: Callable[[Path], None]) -> Iterator[Path]:
    """A folder of the cache, built if it is not there yet; kept from being tidied away as long as the context lasts.

    Args:
        kind: what the names of all those begin with of which this is the newest; older ones go.
        name: of the folder.
        build: makes it, at another path: an interrupted build is none.
    """
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one lab builds, the others wait for it
        made = folder / name
        if not made.is_dir():
            _build_in_a_scratch_folder(kind, made, build)
        in_use = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(in_use, fcntl.LOCK_SH)
        _tidy(folder, kind, keep=made)
    try:
        yield made
    finally:
        os.close(in_use)


def _tidy(folder: Path, kind: str, keep: Path) -> None:
    """Remove what older recipes made, and what interrupted builds left, except for what another lab runs on."""
    for other in [*folder.glob(f"{kind}-*"), *folder.glob(f"building-{kind}-*")]:
        if other == keep or not other.is_dir():
            continue
        handle = os.open(other, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(other)
        finally:
            os.close(handle)


def _build_in_a_scratch_folder(kind: str, made: Path, build: Callable[[Path], None]) -> None:
    """Build under another name and rename at the end."""
    building = Path(tempfile.mkdtemp(prefix=f"building-{kind}-", dir=made.parent))
    try:
        build(building / "made")
        (building / "made").rename(made)
    finally:
        shutil.rmtree(building)


def _build(root: Path, recipe: Recipe) -> None:
    _debootstrap(root, root.parent, recipe)
    _furnish(root)


def _debootstrap(root: Path, scratch: Path, recipe: Recipe) -> None:
    mirrors = []
    for number, text in enumerate(sources.sources_for(SUITE)):  # none: mmdebstrap knows Debian's own mirrors
        mirror = scratch / f"sources-{number}"
        mirror.write_text(text, encoding="utf-8")
        mirrors.append(str(mirror))
    dump = subprocess.run(["apt-config", "dump", "Acquire"], check=True, capture_output=True, text=True).stdout
    # Once everything is installed and the lists are still there: fetch what a deploy would install on top of it. apt runs outside the new
    # root (its configuration is in MMDEBSTRAP_APT_CONFIG), so this machine's certificates and resolver are the ones that count.
    fetch = (
        'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq -y --no-install-recommends --download-only '
        f'-o Dir::Cache::Archives="$1/{REPOSITORY}/" install {" ".join(recipe.installable)}'
    )
    for name, text in recipe.files.items():
        file = scratch / "files" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (scratch / "files").mkdir(exist_ok=True)
    command = [
        # Dies with this process, and its mounts with it: what an interrupted build leaves is files and nothing else.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=apt", "--format=directory"),
        *(f"--aptopt={line}" for line in sources.carried_options(dump)),
        f'--essential-hook=cp -R {shlex.quote(str(scratch / "files"))}/. "$1/"',
        f"--include={','.join(recipe.installed)}",
        f'--customize-hook=mkdir -p "$1/{REPOSITORY}/partial"',
        f"--customize-hook={fetch}",
        f'--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash {USER}',
        *(SUITE, str(root), *mirrors),
    ]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT, env=environment)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RuntimeError(f"the lab's image could not be built (mmdebstrap, {SUITE}):\n{last}")


def _furnish(root: Path) -> None:
    """What makes it a host: sources, names, accounts, no services that cannot work in a container."""
    repository = root / REPOSITORY
    (repository / "Packages").write_text(sources.packages_index(_control(repository)), encoding="utf-8")
    for leftover in ("lock", "partial"):
        path = repository / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    apt = root / "etc/apt"
    (apt / "apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    (apt / "sources.list").unlink(missing_ok=True)
    for source in (apt / "sources.list.d").iterdir():
        source.unlink()
    (apt / "sources.list.d/lab.list").write_text(f"deb [trusted=yes] file:/{REPOSITORY} ./\n", encoding="utf-8")

    (root / "etc/default/locale").write_text("LANG=C.UTF-8\n", encoding="utf-8")
    (root / "etc/localtime").unlink(missing_ok=True)
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    (root / "etc/machine-id").write_bytes(b"")  # each container gets its own at its first boot
    sudoers = root / "etc/sudoers.d" / USER
    sudoers.write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n", encoding="utf-8")
    sudoers.chmod(0o440)
    for host_key in (root / "etc/ssh").glob("ssh_host_*"):
        host_key.unlink()
    # Addresses are set from outside; nobody sits at the console; nothing here is online to wait for.
    for unit in (
        "systemd-networkd.service",
        "systemd-networkd-wait-online.service",
        "console-getty.service",
        "getty@tty1.service",
    ):
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")


def _control(repository: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for package in sorted(repository.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "--field", package], check=True, capture_output=True, text=True).stdout
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        yield fields, {"Filename": f"./{package.name}", "Size": str(package.stat().st_size), "SHA256": digest}
