"""What a host says about the service on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase

from metalscribe_provision.common import ROOT
from metalscribe_provision.service.units import Machine


class ReleaseStatus(FactBase[dict[str, Any]]):
    """``metalscribe-release status``; empty where the tool is not installed yet."""

    default = dict

    def command(self) -> str:
        """Prints JSON, or nothing."""
        tool = f"{ROOT}/bin/metalscribe-release"
        return f"[ ! -x {tool} ] || {tool} status --json"

    def process(self, output: Sequence[str]) -> dict[str, Any]:
        """The object."""
        text = "\n".join(output)
        if not text.strip():
            return {}
        try:
            found = json.loads(text)
        except ValueError:
            raise FactProcessError(f"metalscribe-release status printed no JSON: {text[:200]}") from None
        if not isinstance(found, dict):
            raise FactProcessError(f"metalscribe-release status printed no JSON object: {text[:200]}")
        return found


class MachineFact(FactBase[Machine]):
    """systemd's version, and how many NVIDIA GPUs the host has."""

    def command(self) -> str:
        """systemd's first line, then the class of every PCI device by NVIDIA."""
        return (
            "systemctl --version | head -n 1; "
            "for device in /sys/bus/pci/devices/*; do "
            '[ "$(cat "$device/vendor" 2>/dev/null)" != 0x10de ] || cat "$device/class"; done; true'
        )

    def process(self, output: Sequence[str]) -> Machine:
        """Read both."""
        lines = list(output)
        words = lines[0].split() if lines else []
        if len(words) < 2 or words[0] != "systemd" or not words[1].isdigit():
            raise FactProcessError(f"systemctl --version printed {lines[:1]}, which names no systemd")
        # Display controllers: VGA (0x0300), 3D (0x0302).
        return Machine(int(words[1]), sum(line.startswith(("0x0300", "0x0302")) for line in lines[1:]))


class ApiKeyPresent(FactBase[bool]):
    """Whether the host has its own API key."""

    def command(self, path: str) -> str:
        """``yes`` if the file is there and not empty."""
        return f"[ ! -s '{path}' ] || echo yes"

    @staticmethod
    def default() -> bool:
        """It was not."""
        return False

    def process(self, output: Sequence[str]) -> bool:
        """The answer."""
        return list(output) == ["yes"]
