"""What keeps a host from being deployed to, each with how to mend it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from metalscribe_provision.common import CANDIDATE_PORT, PORT, USER
from metalscribe_provision.hostdata import AcmeChallenge, HostData, Tls
from metalscribe_provision.preflight.machine import Access, Listener, Machine
from metalscribe_provision.preflight.python import DISTRIBUTION_PYTHON, MINIMUM

MINIMUM_SYSTEMD: Final = 249
"""Ubuntu 22.04's; the unit's hardening and credentials need nothing newer."""

MINIMUM_MEMORY_GB: Final = 1.8
"""A machine that is sold with 2 GiB; less does not load any model beside the system."""

UPGRADE_DISK_GB: Final = 2.0
"""A further release on a host that has one: a virtual environment with cuBLAS is 1.4 GB."""

CLOCK_TOLERANCE: Final = 300.0
"""Seconds that a host's clock may differ from this machine's before certificates are at risk."""

CPU_FLAGS: Final = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
"""x86-64-v2, NumPy's baseline (``numpy.show_config()``); CTranslate2 asks for SSE 4.1 and takes AVX and more if they are there."""

_SYSTEMS: Final = "Debian 12 and 13, Ubuntu 22.04 and 24.04"


def machine_findings(machine: Machine, data: HostData, now: float) -> Iterator[str]:
    """Yield what is wrong with the machine; ``now`` is this machine's clock, in seconds since 1970."""
    system = machine.system
    if (system.get("ID", ""), system.get("VERSION_ID", "")) not in DISTRIBUTION_PYTHON:
        name = system.get("PRETTY_NAME", "no system that /etc/os-release names")
        yield f"it runs {name}; supported are {_SYSTEMS}"
    if machine.architecture != "amd64":
        yield f"its architecture is {machine.architecture or 'unknown'}; the service's libraries are for x86_64 (amd64)"
    elif machine.cpu_flags and (missing := CPU_FLAGS - machine.cpu_flags):
        yield f"its processor lacks {', '.join(sorted(missing))}; on a virtual machine, set the CPU type to host (or x86-64-v2)"
    if not machine.booted_with_systemd:
        yield "it was not started by systemd; the service is a systemd unit, an application container cannot run it"
    elif machine.systemd is not None and machine.systemd < MINIMUM_SYSTEMD:
        yield f"its systemd is {machine.systemd}; {MINIMUM_SYSTEMD} or later is needed ({_SYSTEMS} have it)"
    wanted = min(data.min_disk_gb, UPGRADE_DISK_GB) if machine.deployed else data.min_disk_gb
    for path, free in machine.free_gb.items():
        if free < wanted:
            yield f"{path} has {free:.1f} GB free, {wanted:.1f} are needed; make room, or set min_disk_gb"
    if machine.memory_gb is not None and machine.memory_gb < MINIMUM_MEMORY_GB:
        yield f"it has {machine.memory_gb:.1f} GB of memory; 2 GB is the least"
    if machine.clock is not None and abs(machine.clock - now) > CLOCK_TOLERANCE:
        yield (
            f"its clock is {_duration(abs(machine.clock - now))} {'ahead of' if machine.clock > now else 'behind'} this machine's, "
            "certificates would not be valid; set it (timedatectl set-ntp true)"
        )


def access_finding(access: Access, *, become: bool, password: bool) -> str | None:
    """Return why the deploy cannot log in so; ``password`` says that sudo's is known, or can be asked for."""
    if access.user == USER:
        return (
            f"the deploy logs in as {USER}, which is to be the service's own account, without a shell: give the host another user for "
            "logging in (on a machine made with Terraform: the variable username)"
        )
    if not become:
        return None if access.uid == 0 else _NOT_ROOT.format(user=access.user)
    said = access.sudo
    if said is None or (password and any(words in said for words in _PASSWORD)):
        return None
    if any(words in said for words in _PASSWORD):
        return f"sudo asks {access.user} for a password; give it none (NOPASSWD), or put ansible_become_password into the vault"
    if "not found" in said:
        return "sudo is not installed; install it, or connect as root without ansible_become"
    return f"sudo does not let {access.user} become root: {said}"


def python_finding(interpreter: str, packages: Iterable[str], state: str) -> str | None:
    """Return why there is no Python for the service; ``state`` is what ``facts.PythonFact`` found."""
    word, _, version = state.partition(" ")
    if word == "present":
        found = tuple(int(part) for part in version.split("."))
        return f"{interpreter} is Python {version}; the service needs {_MINIMUM} or later" if found < MINIMUM else None
    if word == "broken":
        return f"{interpreter} does not start; install it again, or set python to another one's path"
    if word != "absent":
        return None
    names = " and ".join(packages)
    if not names:
        return f"there is no {interpreter}; install it, or set python=auto"
    return f"apt has no {names}; on Ubuntu enable universe (add-apt-repository universe), or set python to another one's path"


def port_findings(listeners: Iterable[Listener], data: HostData, *, switches: bool) -> Iterator[str]:
    """Yield the ports that somebody else listens on; with ``switches`` (see ``Machine``), systemd itself may do so for us."""
    listeners = list(listeners)
    for port, unit in ports(data).items():
        owners = [listener for listener in listeners if listener.port == port]
        ours = any(re.fullmatch(unit, owner.unit) for owner in owners)
        held = switches and all(owner.unit == "init.scope" for owner in owners)
        if owners and not (ours or held):
            names = ", ".join(sorted({f"{owner.process} ({owner.unit or 'no unit'})" for owner in owners}))
            remedy = "stop it, or set https_port" if port == data.https_port else "stop it, the deploy needs the port"
            yield f"port {port} is taken by {names}; {remedy}"


def cloud_init_finding(status: str) -> str | None:
    """Return that cloud-init is at work still, which installs packages and writes configuration meanwhile."""
    if "running" not in status:  # or "degraded running"
        return None
    return (
        "cloud-init is still at work on its first boot; see cloud-init status --long there, and deploy when it is done"
    )


def file_findings(data: HostData) -> Iterator[str]:
    """Yield what the host data names on this machine, and is not there."""
    for name in ("bundle", "model_path", "tls_certificate", "tls_certificate_key", "acme_dns_credentials"):
        path = getattr(data, name)
        if path is not None and not path.exists():
            yield f"{name}: there is no {path} on the machine that deploys"


def ports(data: HostData) -> dict[int, str]:
    """Map each TCP port that this deploy needs to a regular expression of the units that may have it already."""
    own = r"metalscribe.*\.service"
    wanted = {PORT: own, CANDIDATE_PORT: own, data.https_port: r"nginx\.service"}
    if data.tls is Tls.ACME and data.acme_challenge is AcmeChallenge.HTTP_01:
        wanted[80] = r"nginx\.service"
    return wanted


_NOT_ROOT: Final = "the deploy connects as {user}, who is not root; set ansible_become=true, or ansible_user=root"
_PASSWORD: Final = ("a password is required", "interactive authentication is required")  # sudo, and sudo-rs

_MINIMUM: Final = ".".join(map(str, MINIMUM))


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
