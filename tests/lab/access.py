"""How the lab gets into its hosts."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Access:
    """How the lab gets into its hosts: a key of its own, and the keys that the hosts are known by."""

    key: Path
    known_hosts: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Options of OpenSSH's clients; nothing of the user's own configuration has a say."""
        settings = {
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": 10,
            "LogLevel": "ERROR",
        }
        return "-F", "/dev/null", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))

    def know(self, names: Sequence[str], public_key: str) -> None:
        """From now on a host is known by this key, and by no other.

        Args:
            names: its name and its addresses.
            public_key: kind and key, as in the host's ``.pub`` file.
        """
        known = self.known_hosts.read_text(encoding="ascii").splitlines()
        others = [line for line in known if not set(names) & set(line.split()[0].split(","))]
        line = f"{','.join(names)} {' '.join(public_key.split()[:2])}"
        self.known_hosts.write_text("".join(f"{each}\n" for each in [*others, line]), encoding="ascii")


def make_key(path: Path, comment: str) -> None:
    """An SSH key pair without a passphrase: ``path`` and ``path.pub``."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)
