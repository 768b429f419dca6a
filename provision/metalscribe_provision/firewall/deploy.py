"""Drop what is not SSH, HTTPS or, for ACME, HTTP."""

from __future__ import annotations

from collections.abc import Generator
from io import StringIO
from pathlib import PurePosixPath

from pyinfra.api.command import FileUploadCommand, PyinfraCommand, QuoteString, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import files, systemd

from metalscribe_provision.common import CHECKOUT, applied, packages, proven
from metalscribe_provision.firewall.facts import (
    DROP_IN,
    RULESET,
    UNIT,
    UNIT_FILE,
    Drift,
    OtherFirewalls,
    SshConnection,
    Traces,
)
from metalscribe_provision.firewall.ruleset import OWN_RULES, ruleset, ssh_ports_of
from metalscribe_provision.hostdata import HostData


@deploy("Firewall")
def firewall(data: HostData) -> None:
    """A table of our own, checked before it is loaded, and loaded again whenever the host starts or nftables reloads."""
    if not data.firewall:
        removed(name="Remove the firewall")
        return
    _refuse_others(data)
    connection = host.get_fact(SshConnection, _sudo=False)
    port = host.data.get("ssh_port")
    ports = ssh_ports_of(data.ssh_ports, connection, int(port) if port else None)

    packages(name="Install nftables", names=["nftables"])
    files.directory(
        name="Make the folder of the operator's own rules", path=str(OWN_RULES), mode="755", user="root", group="root"
    )
    written(name="Write the rules", text=ruleset(data, ports))
    units = {UNIT_FILE: UNIT, DROP_IN: "nftables-metalscribe.conf"}
    for destination, source in units.items():
        files.put(
            name=f"Install {source}",
            src=str(CHECKOUT / "systemd" / source),
            dest=destination,
            mode="644",
            user="root",
            group="root",
        )
    applied(
        name="systemd reads them",
        stamp="firewall-units",
        paths=[PurePosixPath(path) for path in units],
        commands=["systemctl daemon-reload"],
    )
    systemd.service(name="Load the rules with the machine", service=UNIT, running=True, enabled=True)
    loaded(name="Load the rules")
    proven(name="The kernel has the rules", problem=_problem)


@operation()
def written(text: str) -> Generator[PyinfraCommand]:
    """The rules in their file, if nft takes them."""
    aside = f"{RULESET}.new"
    commands = list(files.put._inner(src=StringIO(text), dest=str(RULESET), mode="644", user="root", group="root"))  # noqa: SLF001  (pyinfra's own comparison)
    if not commands:
        return
    yield FileUploadCommand(StringIO(text), aside, remote_temp_filename=host.get_temp_filename(aside))
    yield StringCommand(f"nft -c -f {aside} && chown root:root {aside} && chmod 644 {aside} && mv -f {aside} {RULESET}")


@operation()
def loaded() -> Generator[PyinfraCommand]:
    """The rules in the kernel, replaced at one stroke where they differ from the file."""
    drift = host.get_fact(Drift)
    if not drift:
        host.noop("the kernel has the rules")
        return
    yield StringCommand("systemctl reload-or-restart", QuoteString(UNIT))


@operation()
def removed() -> Generator[PyinfraCommand]:
    """Our table, its unit and its file away; the file last, since it tells that there is something to remove."""
    traces = host.get_fact(Traces)
    if not traces:
        host.noop("there is none")
        return
    yield StringCommand(
        f"if [ -e {UNIT_FILE} ]; then systemctl disable --now {UNIT}; fi;",
        "if nft list table inet metalscribe >/dev/null 2>&1; then nft delete table inet metalscribe; fi;",
        f"rm -f {UNIT_FILE} {DROP_IN} && systemctl daemon-reload && rm -f {RULESET}",
    )


def _refuse_others(data: HostData) -> None:
    others = host.get_fact(OtherFirewalls)
    if not others:
        return
    other = others[0]
    opened = {"ufw": f"ufw allow {data.https_port}/tcp", "firewalld": f"firewall-cmd --add-port={data.https_port}/tcp"}
    switched_off = {"ufw": "ufw disable", "firewalld": "systemctl disable --now firewalld"}
    raise DeployError(
        f"{other} rules this host already, and two firewalls that know nothing of each other are none to rely on: "
        f"keep it (firewall=false, and {opened[other]}) or switch it off ({switched_off[other]})"
    )


def _problem() -> str | None:
    drift = host.get_fact(Drift)
    return f"the kernel's rules differ from {RULESET}: {drift}; see: systemctl status {UNIT}" if drift else None
