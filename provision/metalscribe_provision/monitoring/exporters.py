"""The exporters that a host may have: their packages, units, ports and files. All of them listen on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from metalscribe_provision.common import CHECKOUT, CURRENT, ETC, STATE
from metalscribe_provision.hostdata import GpuExporter, HostData

NODE_EXPORTER_PORT: Final = 9100
GPU_EXPORTER_PORT: Final = 9400
"""Of either GPU exporter: there is one of them at most, and nginx need not know which."""

_UNITS: Final = PurePosixPath("/etc/systemd/system")


@dataclass(frozen=True, slots=True)
class Exporter:
    """One exporter.

    Attributes:
        name: what operations and stamps call it.
        unit: its systemd unit.
        port: on 127.0.0.1.
        path: where nginx shows it.
        packages: Debian packages that bring it; none for what comes with metalscribe.
        file: the unit, or the drop-in for the package's unit, that the deploy writes; its being there means that the
            deploy set the exporter up.
        template: that file's, in ``systemd/``.
        restarts_with: other files whose change calls for a restart.
    """

    name: str
    unit: str
    port: int
    path: str
    packages: tuple[str, ...]
    file: PurePosixPath
    template: str
    restarts_with: tuple[PurePosixPath, ...] = ()

    def text(self) -> str:
        """Return what :attr:`file` is to hold."""
        return _render(self.template, port=self.port, current=CURRENT, etc=ETC, state=STATE)


NODE: Final = Exporter(
    name="node-exporter",
    unit="prometheus-node-exporter.service",
    port=NODE_EXPORTER_PORT,
    path="/metrics/node",
    packages=("prometheus-node-exporter",),
    file=_UNITS / "prometheus-node-exporter.service.d" / "metalscribe.conf",
    template="prometheus-node-exporter.conf.j2",
)

NVML: Final = Exporter(
    name="gpu-exporter",
    unit="metalscribe-gpu-exporter.service",
    port=GPU_EXPORTER_PORT,
    path="/metrics/gpu",
    packages=(),
    file=_UNITS / "metalscribe-gpu-exporter.service",
    template="metalscribe-gpu-exporter.service.j2",
    restarts_with=(CURRENT / "release.json",),
)

DCGM: Final = Exporter(
    name="dcgm-exporter",
    unit="nvidia-dcgm-exporter.service",
    port=GPU_EXPORTER_PORT,
    path="/metrics/gpu",
    packages=("datacenter-gpu-manager-4-core", "datacenter-gpu-manager-exporter"),
    file=_UNITS / "nvidia-dcgm-exporter.service.d" / "metalscribe.conf",
    template="nvidia-dcgm-exporter.conf.j2",
)

ALL: Final = (NODE, NVML, DCGM)


def wanted(data: HostData) -> Sequence[Exporter]:
    """Return the exporters that the operator wants on a host."""
    gpu = {GpuExporter.NONE: (), GpuExporter.NVML: (NVML,), GpuExporter.DCGM: (DCGM,)}[data.gpu_exporter]
    return (*((NODE,) if data.node_exporter else ()), *gpu)


def refusal(data: HostData, missing: Sequence[str]) -> str | None:
    """Return why a host cannot have the exporters that are wanted; None if it can.

    Args:
        data: the host's variables.
        missing: packages that neither are installed nor can be had from the host's package sources.
    """
    if data.gpu_exporter is not GpuExporter.NONE and not data.needs_gpu:
        return f"gpu_exporter={data.gpu_exporter.value} on a host with driver=none: set gpu_exporter=none"
    absent = [name for name in DCGM.packages if name in missing]
    if data.gpu_exporter is GpuExporter.DCGM and absent:
        return (
            f"gpu_exporter=dcgm needs {' and '.join(absent)}, which the host's package sources do not have: they come "
            'from NVIDIA\'s CUDA repository (https://docs.nvidia.com/datacenter/dcgm/latest/, "Installation"). Add it, pin '
            "the driver's packages to the distribution's, run apt-get update; or set gpu_exporter=nvml, which needs nothing"
        )
    return None


def _render(template: str, **variables: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(CHECKOUT / "systemd"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (units, not HTML)
    )
    return environment.get_template(template).render(**variables)
