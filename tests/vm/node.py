"""The cluster's node: a host of the lab whose pvesh and pveum hand their words to the simulated cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastapi import Request
from fastapi.responses import PlainTextResponse

from metalscribe_provision.passthrough import pci
from pve.api import Simulator
from pve.cli import Refused, command
from pve.serving import Served
from pve.state import Device
from vm.machine import Machine

_PATH: Final = "/lab/tools"
_CA: Final = "/etc/pve/pve-root-ca.pem"

_TOOL: Final = """\
#!/bin/sh
# Stands in for Proxmox' {tool}: hands its words to the simulated cluster, which answers as {tool} would.
for word do
  shift
  set -- "$@" --data-urlencode "word=$word"
done
answer=$(curl --silent --show-error --cacert {ca} --fail-with-body --data-urlencode word={tool} "$@" {url}) || {{
  printf '%s\\n' "$answer" >&2
  exit 255
}}
[ -z "$answer" ] || printf '%s\\n' "$answer"
"""


def serve_tools(simulator: Simulator) -> None:
    """Let the cluster answer what a node's tools ask as root@pam."""

    async def run(request: Request) -> PlainTextResponse:
        words = [str(value) for _, value in (await request.form()).multi_items()]
        try:
            printed = command(simulator.cluster, words[0], words[1:])
        except Refused as refused:
            return PlainTextResponse(str(refused), status_code=400)
        simulator.save()
        return PlainTextResponse(printed)

    simulator.app.add_api_route(_PATH, run, methods=["POST"])


def install_tools(host: Machine, served: Served) -> None:
    """Put pvesh and pveum on a host."""
    host.run("mkdir -p /etc/pve/qemu-server")
    host.put(served.certificate.read_text(encoding="ascii"), _CA)
    for tool in ("pvesh", "pveum"):
        script = _TOOL.format(tool=tool, ca=_CA, url=served.endpoint.rstrip("/") + _PATH)
        host.put(script, f"/usr/bin/{tool}", mode=0o755)


def hardware_of(host: Machine) -> list[Device]:
    """The node's devices as the cluster lists them: what the host's kernel says."""
    devices = pci.parse_devices(host.run(pci.COMMAND).stdout.splitlines())
    return [
        Device(
            address=device.address,
            vendor=f"0x{device.vendor:04x}",
            device=f"0x{device.device:04x}",
            subsystem_vendor=f"0x{device.subsystem_vendor:04x}",
            subsystem_device=f"0x{device.subsystem_device:04x}",
            device_class=f"0x{device.class_code:06x}",
            iommu_group=-1 if device.group is None else device.group,
        )
        for device in devices
    ]


def exported(script: str) -> Mapping[str, str]:
    """What a file of ``export NAME='VALUE'`` lines sets."""
    pairs = (line.removeprefix("export ").split("=", 1) for line in script.splitlines() if line.startswith("export "))
    return {name: value.strip("'") for name, value in pairs}
