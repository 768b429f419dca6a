"""Exporters for Prometheus, on loopback; nginx shows them to the networks that may see them (see the edge)."""

from __future__ import annotations

from collections.abc import Generator
from io import StringIO

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.files import File
from pyinfra.operations import files, systemd

from metalscribe_provision.common import STAMPS, applied, packages, proven
from metalscribe_provision.hostdata import GpuExporter, HostData
from metalscribe_provision.monitoring.exporters import ALL, DCGM, Exporter, refusal, wanted
from metalscribe_provision.monitoring.facts import Candidates, Listeners


@deploy("Monitoring")
def monitoring(data: HostData) -> None:
    """Set the exporters up that are wanted, and take back those that the deploy once set up and that are not any more.

    Raises:
        DeployError: one of them cannot be had on this host.
    """
    reason = refusal(data, _unavailable() if data.gpu_exporter is GpuExporter.DCGM else ())
    if reason is not None:
        raise DeployError(f"{host.name}: {reason}")
    chosen = wanted(data)
    for exporter in ALL:
        if exporter not in chosen:
            retired(name=f"No {exporter.name}", exporter=exporter)
    for exporter in chosen:
        _set_up(exporter)


def _set_up(exporter: Exporter) -> None:
    # First, so that it never listens to the world, not even after a reboot in the middle of this.
    files.put(
        name=f"Unit of the {exporter.name}",
        src=StringIO(exporter.text()),
        dest=str(exporter.file),
        user="root",
        group="root",
        mode="644",
    )
    if exporter.packages:
        packages(name=f"Packages of the {exporter.name}", names=exporter.packages)
    applied(
        name=f"The {exporter.name} is as its unit says",
        stamp=exporter.name,
        paths=[exporter.file, *exporter.restarts_with],
        commands=["systemctl daemon-reload", f"systemctl enable {exporter.unit}", f"systemctl restart {exporter.unit}"],
    )
    systemd.service(
        name=f"The {exporter.name} runs, and starts at boot", service=exporter.unit, running=True, enabled=True
    )
    proven(name=f"The {exporter.name} listens on loopback alone", problem=lambda: _exposed(exporter))


@operation()
def retired(exporter: Exporter) -> Generator[StringCommand]:
    """Stop and disable an exporter that the deploy set up, and remove what it wrote; a package stays installed."""
    if not host.get_fact(File, path=str(exporter.file)):
        host.noop(f"the {exporter.name} is not ours")
        return
    file = QuoteString(str(exporter.file))
    # The file is what this is known by: it goes last.
    yield StringCommand(
        *("if", "systemctl", "cat", exporter.unit, ">/dev/null", "2>&1;", "then"),
        *("systemctl", "disable", "--now", exporter.unit + ";", "fi"),
    )
    yield StringCommand(
        *("rm", "-f", file, QuoteString(str(STAMPS / exporter.name)), "&&", "systemctl", "daemon-reload")
    )


def _exposed(exporter: Exporter) -> str | None:
    addresses = host.get_fact(Listeners, port=exporter.port)
    if addresses == ["127.0.0.1"]:
        return None
    if not addresses:
        return f"{exporter.unit} runs, but nothing listens on port {exporter.port}: see journalctl -u {exporter.unit}"
    return f"port {exporter.port} is listened to on {', '.join(addresses)}, and should be on 127.0.0.1 alone"


def _unavailable() -> list[str]:
    """The packages of DCGM's exporter that cannot be had."""
    candidates = host.get_fact(Candidates, packages=list(DCGM.packages))
    return [name for name in DCGM.packages if not candidates.get(name)]
