"""The first of the deploys: refuses while it plans, so that a host which is unfit is left as it was; changes nothing itself."""

from __future__ import annotations

import sys
import time
from typing import Final

from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.context import config, host

from metalscribe_provision.hostdata import HostData
from metalscribe_provision.preflight.facts import AccessFact, CloudInitFact, ListenersFact, MachineFact, PythonFact
from metalscribe_provision.preflight.findings import (
    access_finding,
    cloud_init_finding,
    file_findings,
    machine_findings,
    port_findings,
    ports,
    python_finding,
)
from metalscribe_provision.preflight.machine import Machine
from metalscribe_provision.preflight.python import python_for

CLOUD_INIT_WAIT: Final = 600
"""Seconds that a machine which has just been created may take for its first boot's work."""


@deploy("Preflight")
def preflight(data: HostData) -> None:
    """Look the host over.

    Raises:
        DeployError: everything that keeps it from being deployed to, with how to mend each.
    """
    machine = host.get_fact(MachineFact, _sudo=False)
    now = time.time()  # before anything is waited for
    access = _access()
    findings = [
        access,
        _cloud_init(),
        *machine_findings(machine, data, now),
        _python(machine, data),
        *file_findings(data),
    ]
    if access is None:
        listeners = host.get_fact(ListenersFact, ports=tuple(ports(data)))
        findings += port_findings(listeners, data, switches=machine.switches)
    found = [finding for finding in findings if finding is not None]
    if found:
        raise DeployError(
            f"{host.name} cannot be deployed to, nothing was changed:" + "".join(f"\n  - {text}" for text in found)
        )


def _access() -> str | None:
    become = bool(host.data.get("_sudo", config.SUDO))
    password = bool(host.data.get("_sudo_password") or config.SUDO_PASSWORD) or sys.stdin.isatty()
    access = host.get_fact(AccessFact, become=become, _sudo=False)
    if access is None:
        return "it does not say whom the deploy connects as (id -u); commands do not run there"
    return access_finding(access, become=become, password=password)


def _cloud_init() -> str | None:
    status = host.get_fact(CloudInitFact, _sudo=False)
    if cloud_init_finding(status) is not None:
        host.log(f"waiting for cloud-init, {CLOUD_INIT_WAIT // 60} minutes at most")
        status = host.get_fact(CloudInitFact, wait=CLOUD_INIT_WAIT, _sudo=False)
    if status == "error":
        host.log("cloud-init ended in an error; see cloud-init status --long on the host")
    return cloud_init_finding(status)


def _python(machine: Machine, data: HostData) -> str | None:
    try:
        chosen = python_for(machine.system.get("ID", ""), machine.system.get("VERSION_ID", ""), data.python)
    except ValueError as error:
        return str(error) if data.python != "auto" else None  # the system itself is the finding
    package = chosen.packages[0] if chosen.packages else None
    state = host.get_fact(PythonFact, interpreter=chosen.interpreter, package=package, _sudo=False)
    return python_finding(chosen.interpreter, chosen.packages[:1], state)
