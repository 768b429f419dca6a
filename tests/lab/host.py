"""A host as the lab reaches it: over SSH, like any other machine."""

from __future__ import annotations

import shlex
import subprocess

from lab.access import Access
from lab.network import Namespace


class Host:
    """Somebody who lets the lab in.

    Args:
        name: its host name.
        address: its IPv4 address.
        controller: the network that the lab reaches it from.
        access: how the lab gets in.
    """

    def __init__(self, name: str, address: str, *, controller: Namespace, access: Access) -> None:
        self.name = name
        self.address = address
        self.access = access
        self._controller = controller

    def run(
        self, command: str, *, user: str = "root", check: bool = True, stdin: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of its shell over SSH and capture what it says.

        Args:
            command: as its shell takes it.
            user: ``root`` or another that lets the lab in.
            check: whether a status other than 0 fails the test.
            stdin: what the command reads.
            timeout: seconds.

        Raises:
            AssertionError: it failed, with all that it said.
        """
        return self._controller.run(
            *self.ssh(command, user=user),
            check=check,
            timeout=timeout,
            **({"input": stdin} if stdin is not None else {}),
        )

    def ssh(self, command: str, *, user: str = "root") -> tuple[str, ...]:
        """The command line that runs ``command`` on it, from the controller's namespace."""
        return "ssh", *self.access.options, "--", f"{user}@{self.address}", command

    def put(self, content: str, path: str, *, mode: int = 0o644) -> None:
        """Write a file on it, as root."""
        self.run(f"install -m {mode:o} /dev/stdin {shlex.quote(path)}", stdin=content)

    def text(self, path: str) -> str:
        """A file's content."""
        return self.run(f"cat {shlex.quote(path)}").stdout

    def boot_id(self) -> str:
        """What differs from boot to boot."""
        return self.text("/proc/sys/kernel/random/boot_id").strip()
