"""A lab: its network, its hosts, and the certainty that nothing of it stays behind.

All that a lab makes carries its id in its name or lies in its folder, so that whoever comes later can remove what a killed lab has left. A lab
holds a lock on its folder as long as it lives; another lab's folder with no such lock is a dead one's.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lab import cgroup
from lab.access import Access, make_key
from lab.container import NSPAWN, Container, unmount
from lab.image import image
from lab.network import Network

FOLDER: Final = Path("/var/lib/metalscribe-lab")
"""Where the labs of this machine are while they last."""

_MOUNTINFO: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A host as it was, from which it can be started as often as one likes.

    Attributes:
        name: the host's.
        layers: its changes to the image, uppermost first.
    """

    name: str
    layers: tuple[Path, ...]


class Lab:
    """A context: at its end nothing is left of it. Containers come and go by ``start`` and ``stop``.

    Attributes:
        network: where its containers are attached, and clients can be.
        access: how its containers are reached.
        folder: its folder; what a test puts there goes away with it.
        containers: the hosts that there are, by name.
        snapshots: those that were taken.
    """

    network: Network
    access: Access
    folder: Path

    def __init__(self) -> None:
        self.id = secrets.token_hex(3)
        self.containers: dict[str, Container] = {}
        self.snapshots: list[Snapshot] = []
        self._stack = ExitStack()
        self._image: Path | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._images = stack.enter_context(ExitStack())
            self.folder = stack.enter_context(_folder(self.id))
            self.access = Access(key=self.folder / "id_ed25519", known_hosts=self.folder / "known_hosts")
            make_key(self.access.key, "metalscribe lab")
            self.access.known_hosts.touch()
            self.network = Network(_prefix(self.id))
            stack.callback(self._stop_all)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, name: str, snapshot: Snapshot | None = None) -> Container:
        """A host that is up: fresh from the image, or as it was when the snapshot of it was taken."""
        assert name not in self.containers, f"there is a {name} already"
        assert snapshot is None or snapshot.name == name, "a host keeps its name, its addresses and its keys"
        namespace = self.network.attach(name)
        container = Container(
            name,
            folder=self.folder / name,
            layers=(*(snapshot.layers if snapshot else ()), self._root),
            namespace=namespace,
            controller=self.network.controller,
            access=self.access,
            groups=[group / name for group in _groups(self.id)],
        )
        self.containers[name] = container
        container.boot()
        return container

    def stop(self, container: Container) -> None:
        """Remove a host."""
        del self.containers[container.name]
        container.close()
        self.network.detach(container.namespace)

    def snapshot(self, container: Container) -> Snapshot:
        """Shut a fresh host down and remove it, but keep all that is on it."""
        container.halt()
        del self.containers[container.name]
        layer = self.folder / f"snapshot-{len(self.snapshots)}"
        container.close(keep=layer)
        self.network.detach(container.namespace)
        self.snapshots.append(Snapshot(container.name, (layer,)))
        return self.snapshots[-1]

    @property
    def _root(self) -> Path:
        """The image; built when the first container needs it, if at all."""
        if self._image is None:
            self._image = self._images.enter_context(image())
        return self._image

    def _stop_all(self) -> None:
        for container in list(self.containers.values()):
            self.stop(container)


def sweep() -> list[str]:
    """Remove what dead labs have left on this machine; returns their ids."""
    FOLDER.mkdir(mode=0o711, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _sweep()


@contextmanager
def _folder(lab: str) -> Iterator[Path]:
    """A new lab's folder, locked as long as the lab lives; whatever belongs to the lab goes with it."""
    FOLDER.mkdir(mode=0o711, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nobody takes a folder for a dead lab's before its own lock is there
        _sweep()
        folder = FOLDER / lab
        folder.mkdir(mode=0o711)
        alive = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(alive, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        _remove(lab)
        os.close(alive)


def _sweep() -> list[str]:
    dead = []
    for folder in FOLDER.iterdir():
        if not folder.is_dir():
            continue
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _remove(folder.name)
            dead.append(folder.name)
        finally:
            os.close(handle)
    return dead


def _remove(lab: str) -> None:
    """Remove all that has a lab's id: processes, mounts, namespaces, control groups, files, in this order."""
    namespaces = [path.name for path in Path("/run/netns").glob(f"{_prefix(lab)}*")]
    while pids := _processes(lab, namespaces):
        cgroup.kill(pids)
    folders = [FOLDER / lab, *NSPAWN.glob(f"*/{_prefix(lab)}*")]
    mountinfo = _MOUNTINFO.read_text(encoding="utf-8")
    for folder in folders:
        for point in cgroup.mounts_below(folder, mountinfo):
            unmount(point)
    for name in namespaces:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    for group in _groups(lab):
        cgroup.remove(group)
    for folder in reversed(folders):  # its own last: as long as that is there, somebody will come and try again
        shutil.rmtree(folder)


def _processes(lab: str, namespaces: list[str]) -> set[int]:
    """Its containers' processes, and whatever else runs in its namespaces."""
    found = set().union(*map(cgroup.processes, _groups(lab)))
    for name in namespaces:
        listed = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True).stdout
        found |= {int(pid) for pid in listed.split()}
    return found


def _groups(lab: str) -> list[Path]:
    hierarchies = cgroup.hierarchies(_MOUNTINFO.read_text(encoding="utf-8"))
    return [hierarchy / _prefix(lab).rstrip("-") for hierarchy in hierarchies]


def _prefix(lab: str) -> str:
    return f"metalscribe-lab-{lab}-"
