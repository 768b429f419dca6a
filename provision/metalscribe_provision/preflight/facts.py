"""Looks at a host before anything is changed; as whoever the deploy connects as, but for the owners of ports."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from pyinfra.api.facts import FactBase

from metalscribe_provision.common import CURRENT, ROOT
from metalscribe_provision.preflight.machine import (
    Access,
    Listener,
    Machine,
    parse_access,
    parse_listeners,
    parse_machine,
)

DISKS: Final = ("/opt", "/var/lib")
"""Where the releases are, and the state with the models."""


class MachineFact(FactBase[Machine]):
    """Distribution, architecture, systemd, disks, memory, clock, processor."""

    @staticmethod
    def default() -> Machine:
        """Return what a host that says nothing has."""
        return Machine()

    def command(self) -> str:
        """Print each part after a line that names it; what fails, prints nothing."""
        disks = f"for d in {' '.join(DISKS)}; do p=$d; [ -d $p ] || p=/; echo $d $(df -Pk $p | tail -n 1); done"
        parts = {
            "system": "cat /etc/os-release",
            "architecture": "dpkg --print-architecture",
            "systemd": "[ -d /run/systemd/system ] && echo booted; systemctl --version | head -n 1",  # sd_booted(3)
            "disk": disks,
            "memory": "grep ^MemTotal: /proc/meminfo",
            "clock": "date +%s",
            "cpu": "grep -m 1 ^flags /proc/cpuinfo",
            "deployed": f"[ -e {CURRENT} ] && echo yes",
            "switches": f"[ -e {ROOT}/bin/metalscribe-release ] && echo yes",
        }
        return "{ " + "; ".join(f"echo '== {name}'; {part}" for name, part in parts.items()) + "; } 2>/dev/null; true"

    def process(self, output: list[str]) -> Machine:
        """Parse."""
        return parse_machine(output)


class AccessFact(FactBase[Access | None]):
    """Whom the deploy connects as, and whether sudo would work; to be asked without sudo."""

    def command(self, become: bool) -> str:
        """Ask sudo for nothing, where the deploy is to use it."""
        return "id -u; id -un" + ("; sudo -n true 2>&1 || true" if become else "")

    def process(self, output: list[str]) -> Access | None:
        """Parse."""
        return parse_access(output)


class CloudInitFact(FactBase[str]):
    """cloud-init's status: ``running``, ``done``, ``error``, …; empty where there is none. Waits ``wait`` seconds at most."""

    @staticmethod
    def default() -> str:
        """Return what a host without cloud-init has."""
        return ""

    def command(self, wait: int = 0) -> str:
        """Wait without failing: that cloud-init ended in an error is for its operator to judge."""
        waiting = f"timeout {wait} cloud-init status --wait >/dev/null 2>&1; " if wait else ""
        return f"if command -v cloud-init >/dev/null; then {waiting}cloud-init status 2>/dev/null; fi; true"

    def process(self, output: list[str]) -> str:
        """Take the word after ``status:``."""
        return next((line.partition(":")[2].strip() for line in output if line.startswith("status:")), "")


class PythonFact(FactBase[str]):
    """An interpreter: ``present 3.11``, ``broken``, ``installable``, ``absent``, or ``unknown`` where apt has no lists yet."""

    @staticmethod
    def default() -> str:
        """Return what a host that says nothing has."""
        return "unknown"

    def command(self, interpreter: str, package: str | None) -> str:
        """Ask the interpreter itself, else apt for the package that brings it."""
        path = shlex.quote(interpreter)
        version = shlex.quote('import sys; print("present", "%d.%d" % sys.version_info[:2])')
        has = "apt-cache madison {} 2>/dev/null | grep -q .".format
        apt = f"elif {has(shlex.quote(package or ''))}; then echo installable; elif {has('ca-certificates')}; then echo absent; else echo unknown"
        return (
            f"if [ -x {path} ]; then {path} -c {version} || echo broken; {apt if package else 'else echo absent'}; fi"
        )

    def process(self, output: list[str]) -> str:
        """Take the one line."""
        return output[-1].strip()


class ListenersFact(FactBase[list[Listener]]):
    """Who listens on these TCP ports."""

    @staticmethod
    def default() -> list[Listener]:
        """Return what a host where nobody listens has."""
        return []

    def requires_command(self, ports: Sequence[int]) -> str:
        """Come from iproute2, which a container's image may lack."""
        del ports
        return "ss"

    def command(self, ports: Sequence[int]) -> str:
        """List the sockets, then the control groups of each process, which name its unit."""
        wanted = " or ".join(f"sport = :{port}" for port in ports)
        return (
            f"s=$(ss -Hltnp '( {wanted} )'); printf '%s\\n' \"$s\"; "
            "for p in $(printf '%s' \"$s\" | grep -o 'pid=[0-9]*' | cut -d= -f2 | sort -u); do "
            "echo pid $p; cat /proc/$p/cgroup 2>/dev/null; done; true"
        )

    def process(self, output: list[str]) -> list[Listener]:
        """Parse."""
        return parse_listeners(output)
