"""What NVML says of the cards, through nvidia-smi: the proof that kernel module and libraries work together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from metalscribe_provision.driver.cards import Card

COMMAND: Final = (
    "nvidia-smi --query-gpu=pci.bus_id,name,driver_version,persistence_mode --format=csv,noheader,nounits 2>&1 || true"
)


class Gpu(NamedTuple):
    """One card, as NVML sees it."""

    address: str
    """PCI address as sysfs has it: 0000:01:00.0."""

    name: str
    driver_version: str
    persistent: bool


@dataclass(frozen=True, slots=True)
class NvmlReport:
    """The cards that work, or what nvidia-smi said instead."""

    gpus: tuple[Gpu, ...] = ()
    error: str = ""


def parse_report(lines: Iterable[str]) -> NvmlReport:
    """What ``COMMAND`` printed: ``00000000:01:00.0, NVIDIA GeForce RTX 4090, 550.163.01, Enabled``, or a message."""
    gpus = []
    rest = []
    for line in filter(None, map(str.strip, lines)):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].count(":") == 2:
            domain, _, place = fields[0].lower().partition(":")
            gpus.append(Gpu(f"{int(domain, 16):04x}:{place}", fields[1], fields[2], fields[3] == "Enabled"))
        else:
            rest.append(line)
    return NvmlReport(tuple(gpus), " ".join(rest))


def problem(report: NvmlReport, cards: Sequence[Card], version: str | None, *, persistence: bool = True) -> str | None:
    """What is wrong with the driver; None if every card works, at this version of the libraries.

    Args:
        report: what NVML says.
        cards: those that it should see.
        version: of the libraries.
        persistence: whether persistence mode has to be on.
    """
    if not report.gpus:
        return f"NVML finds no card: {report.error or 'nvidia-smi said nothing'}; `dmesg | grep -i nvrm` on the host has more"
    missing = [card for card in cards if card.address not in {gpu.address for gpu in report.gpus}]
    if missing:
        return f"NVML does not see {', '.join(map(str, missing))}; `dmesg | grep -i nvrm` on the host says why"
    for gpu in report.gpus:
        if gpu.driver_version != version:
            return f"{gpu.name} at {gpu.address} runs driver {gpu.driver_version}, and the libraries are of {version}; reboot the host"
        if persistence and not gpu.persistent:
            return f"persistence mode is off on {gpu.name} at {gpu.address}; `systemctl status nvidia-persistenced` says why"
    return None
