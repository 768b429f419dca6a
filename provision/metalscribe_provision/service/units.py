"""The units and their neighbours, rendered from ``systemd/``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from metalscribe.settings import Settings
from metalscribe_provision.common import CHECKOUT, ETC, ROOT, STATE, USER
from metalscribe_provision.hostdata import HostData

WATCHDOG_SECS: Final = 30

_GPU_NODES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")

_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(CHECKOUT / "systemd"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  (unit files, not HTML)
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the unit depends on beside the operator's wishes.

    Attributes:
        systemd: its version; 252 on Debian 12, 249 on Ubuntu 22.04.
        gpus: number of NVIDIA GPUs.
    """

    systemd: int
    gpus: int


def service_unit(data: HostData, machine: Machine, credentials: Sequence[str]) -> str:
    """``metalscribe.service``.

    Args:
        data: the host as its operator wants it.
        machine: what it is.
        credentials: names of the files that the service is handed.
    """
    grace = data.settings.get("shutdown_grace_secs", str(Settings.model_fields["shutdown_grace_secs"].default))
    return _render(
        "metalscribe.service.j2",
        root=ROOT,
        etc=ETC,
        user=USER,
        gpu=data.needs_gpu,
        devices=_devices(machine.gpus) if data.needs_gpu else (),
        systemd_version=machine.systemd,
        credentials=sorted(credentials),
        watchdog_secs=WATCHDOG_SECS,
        grace_secs=int(float(grace)),
    )


def companions(data: HostData, machine: Machine) -> dict[str, str]:
    """The other unit files, by name: the slice, the backup, and on a GPU host what makes its device nodes."""
    found = {
        "metalscribe.slice": _render("metalscribe.slice.j2", memory_max=data.memory_max, tasks_max=data.tasks_max),
        "metalscribe-backup.service": _render(
            "metalscribe-backup.service.j2", root=ROOT, state=STATE, backup_keep_days=data.backup_keep_days
        ),
        "metalscribe-backup.timer": _render("metalscribe-backup.timer.j2"),
    }
    if data.needs_gpu:
        found["metalscribe-gpu.service"] = _render("metalscribe-gpu.service.j2", gpus=machine.gpus)
    return found


def journald_drop_in(data: HostData) -> str:
    """How long the journal is kept."""
    return _render("journald-metalscribe.conf.j2", log_max_size=data.log_max_size, log_keep_days=data.log_keep_days)


def _devices(gpus: int) -> list[str]:
    """The device nodes of NVIDIA's driver.

    By node and by the names that their majors have in /proc/devices, which were renamed once (``nvidia-frontend``) and may
    be again; systemd matches them as a pattern when the service starts.
    """
    return ["char-nvidia*", *(f"/dev/nvidia{index}" for index in range(gpus)), *(f"/dev/{name}" for name in _GPU_NODES)]


def _render(name: str, **values: Any) -> str:
    variables: Mapping[str, Any] = values
    return _TEMPLATES.get_template(name).render(variables)
