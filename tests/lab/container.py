"""A host of the lab: a container with a systemd of its own, reached over SSH like any other machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from lab import cgroup
from lab.access import Access, make_key
from lab.host import Host
from lab.image import USER
from lab.network import Namespace
from lab.notifications import Notifications

BOOT_WITHIN: Final = 60.0  # seconds; half a second is usual
HALT_WITHIN: Final = 120.0  # seconds: longer than systemd lets a unit stop (90 by default)

NSPAWN: Final = Path("/run/systemd/nspawn")
"""Where systemd-nspawn keeps what it knows of its machines; one that is killed does not remove it."""

_OPTIONS: Final = (
    "--quiet",
    "--boot",
    "--register=no",  # no systemd-machined, not even a system bus, is needed on this machine
    "--keep-unit",
    "--notify-ready=yes",
    "--console=read-only",
    "--settings=no",
    "--link-journal=no",
    "--resolv-conf=off",
    "--timezone=off",
    "--capability=CAP_NET_ADMIN",  # its own firewall
)
_ENVIRONMENT: Final = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}  # its own sysctl net.*


class Container(Host):
    """A host, from its file system to its SSH service. ``lab.Lab.start`` makes one.

    Args:
        name: its host name.
        folder: where its file system and its state are; removed with it.
        layers: the folders that its file system starts from, uppermost first, left as they are.
        namespace: its network.
        controller: the network that the lab reaches it from.
        access: how the lab gets in.
        groups: its control group in each hierarchy.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        layers: Sequence[Path],
        namespace: Namespace,
        controller: Namespace,
        access: Access,
        groups: Sequence[Path],
    ) -> None:
        super().__init__(name, namespace.address, controller=controller, access=access)
        self.namespace = namespace
        self.root = folder / "root"
        self.console = folder / "console.log"
        self._folder = folder
        self._groups = tuple(groups)
        self._supervisor: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o711)  # an unprivileged user of the container passes through
        self._notifications = Notifications(folder / "notify")
        _mount(folder, layers)
        if (self.root / "etc/hostname").read_text(encoding="ascii") != f"{name}\n":
            self._furnish()
        public_key = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text(encoding="ascii")
        access.know([name, *namespace.addresses], public_key)

    # --- on and off ---

    def boot(self) -> None:
        """Switch it on and wait until its systemd has started everything.

        Raises:
            AssertionError: it did not come up; says what its console says.
        """
        assert not self.on, f"{self.name} is on already"
        command = [
            *(sys.executable, "-m", "lab.boot", *map(str, self._groups), "--", *_OPTIONS),
            f"--machine={self.namespace.name}",
            f"--hostname={self.name}",
            f"--directory={self.root}",
            f"--network-namespace-path={self.namespace.path}",
        ]
        environment = {
            **{name: value for name, value in os.environ.items() if name in {"PATH", "LANG"}},
            **_ENVIRONMENT,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "NOTIFY_SOCKET": str(self._notifications.path),
        }
        self._notifications.forget()
        with self.console.open("ab") as console:
            self._supervisor = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self.wait_until_up()

    def wait_until_up(self, within: float = BOOT_WITHIN) -> None:
        """Wait until its systemd says that it has started everything, at a boot that has not been waited for yet."""
        assert self._notifications.ready_within(within), (
            f"{self.name} did not boot within {within:g} s; its console:\n{self._console()}"
        )
        self._notifications.forget()

    @property
    def on(self) -> bool:
        """Whether it runs; false too once it has halted by itself."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def halt(self) -> None:
        """Shut it down in good order and wait for that."""
        assert self._supervisor is not None, f"{self.name} was never switched on"
        self._supervisor.terminate()
        self._supervisor.wait(HALT_WITHIN)

    def cut_power(self) -> None:
        """End all of its processes at once. What they wrote stays written, unlike with a real power cut."""
        if self._supervisor is None or not self.on:
            return
        self._supervisor.send_signal(signal.SIGUSR1)  # not to boot again
        while self.on:
            for group in self._groups:
                cgroup.kill(cgroup.processes(group))
            with suppress(subprocess.TimeoutExpired):  # it was between two boots
                self._supervisor.wait(1)

    def reboot(self) -> None:
        """Let it reboot itself and wait until it is up again."""
        before = self.boot_id()
        self._notifications.forget()
        self.run("systemctl reboot", check=False)  # the connection may be cut before the answer
        self.wait_until_up()
        assert self.boot_id() != before, f"{self.name} did not reboot"

    def close(self, keep: Path | None = None) -> None:
        """Switch it off and remove everything that it consists of, but for its network.

        Args:
            keep: where its changes to the layers below go instead.
        """
        self.cut_power()
        self._notifications.close()
        for group in self._groups:
            cgroup.remove(group)
        unmount(self.root)
        if keep is not None:
            (self._folder / "changes").rename(keep)
        shutil.rmtree(self._folder)

    # --- what can be done with it ---

    def listing(self, *folders: str) -> dict[str, str]:
        """Everything in these folders by path: kind, mode, owner, group, time of change of its content, and the content's digest or a link's target."""
        wanted = shlex.join(folders)
        form = r"%p\t%y %m %U %G %T@ %l\n"
        listed = self.run(
            f"find {wanted} -xdev -printf '{form}'; find {wanted} -xdev -type f -exec sha256sum -- {{}} +", timeout=300
        )
        entries: dict[str, str] = {}
        for line in listed.stdout.splitlines():
            path, tab, attributes = line.partition("\t")
            if tab:
                entries[path] = attributes
            else:
                digest, _, path = line.partition("  ")
                entries[path] += f" {digest}"
        return entries

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """Entries of its journal, as ``journalctl ARGUMENTS`` selects them; works whether it is on or off (journalctl(1))."""
        return [json.loads(line) for line in self._journalctl("--output=json", *arguments).splitlines()]

    def journal_text(self, *arguments: str) -> str:
        """The same for people."""
        return self._journalctl("--output=short-iso-precise", *arguments)

    def command_lines(self) -> set[str]:
        """Every command line that runs on it, seen from outside; the environment of a process is not among them."""
        seen = set()
        for pid in set().union(*map(cgroup.processes, self._groups)):
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                seen.add(
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
        return seen - {""}

    def describe(self, lines: int = 60) -> Mapping[str, str]:
        """What helps to understand a failure: the end of its console and of its journal."""
        # Each of the lab's own commands is a session, which says nothing about the failure.
        sessions = re.compile(
            r" (sshd|systemd-logind)\[\d+\]: | session-\d+\.scope: |Started session-| user@?-?\d+|-dir@\d+"
        )
        journal = [line for line in self.journal_text("--lines=2000").splitlines() if not sessions.search(line)]
        return {f"console of {self.name}": self._console(lines), f"journal of {self.name}": "\n".join(journal[-lines:])}

    # --- inside ---

    def _furnish(self) -> None:
        """Its names, its keys, and whom it lets in."""
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n", encoding="ascii")
        addresses = "".join(f"{address} {self.name}\n" for address in self.namespace.addresses)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{addresses}", encoding="ascii")
        make_key(etc / "ssh/ssh_host_ed25519_key", f"root@{self.name}")
        ours = self.access.key.with_suffix(".pub").read_text(encoding="ascii")
        for home in (self.root / "root", self.root / "home" / USER):
            owner = home.stat()
            authorized = home / ".ssh/authorized_keys"
            authorized.parent.mkdir(mode=0o700, exist_ok=True)
            authorized.write_text(ours, encoding="ascii")
            for path in (authorized.parent, authorized):
                os.chown(path, owner.st_uid, owner.st_gid)
        (self.root / "var/log/journal").mkdir(exist_ok=True)  # a journal that survives reboots

    def _journalctl(self, *arguments: str) -> str:
        folder = self.root / "var/log/journal"
        if self.on:
            # What it has not written to disk yet; over SSH, for its own journald is the one to ask.
            self.run("journalctl --sync", check=False)
        command = ["journalctl", f"--directory={folder}", "--no-pager", "--quiet", "--all", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout

    def _console(self, lines: int = 40) -> str:
        said = self.console.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line for line in said if line][-lines:])


def unmount(point: Path) -> None:
    """Unmount a container's root, and remove the lock file that a killed systemd-nspawn leaves of it (named by device and inode)."""
    root = point.stat()
    subprocess.run(["umount", point], check=True)
    (NSPAWN / "locks" / f"inode-{root.st_dev}:{root.st_ino}").unlink(missing_ok=True)


def _mount(folder: Path, layers: Sequence[Path]) -> None:
    """The container's root: the layers, with what it changes on top of them."""
    for name in ("changes", "work", "root"):
        (folder / name).mkdir(mode=0o755)
    names = [f"layer{number}" for number, _ in enumerate(layers)]
    for name, layer in zip(names, layers, strict=True):
        (folder / name).symlink_to(layer)
    # Relative names, because a path with a comma or a colon would be several options.
    options = f"lowerdir={':'.join(names)},upperdir=changes,workdir=work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "metalscribe-lab", "root"], cwd=folder, check=True)
