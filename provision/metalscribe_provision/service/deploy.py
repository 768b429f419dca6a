"""Install the unit and its surroundings, and let the release serve behind its health gate."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import files, systemd

from metalscribe_provision.common import CREDENTIALS, ETC, ROOT, applied, proven, secret_file
from metalscribe_provision.edge.names import server_names
from metalscribe_provision.hostdata import HostData
from metalscribe_provision.model.place import model_setting
from metalscribe_provision.monitoring.document import DOCUMENT, host_document, host_json
from metalscribe_provision.release.generations import fingerprint
from metalscribe_provision.runtime.release import release_for
from metalscribe_provision.service.environment import environment, render
from metalscribe_provision.service.facts import ApiKeyPresent, MachineFact, ReleaseStatus
from metalscribe_provision.service.tool import release_tool
from metalscribe_provision.service.units import Machine, companions, journald_drop_in, service_unit

_API_KEY = "metalscribe_api_key"
_UNITS = PurePosixPath("/etc/systemd/system")
_TOOL = ROOT / "bin" / "metalscribe-release"
_JOURNALD = PurePosixPath("/etc/systemd/journald.conf.d/metalscribe.conf")


@deploy("Service")
def service(data: HostData) -> None:
    """Everything that systemd knows about metalscribe, then the switch to the release, if there is one to make."""
    machine = host.get_fact(MachineFact)
    secrets = _secrets(data)
    staged = {
        "metalscribe.env": render(environment(data, model_setting(data))).encode(),
        "metalscribe.service": service_unit(data, machine, [*secrets, _API_KEY]).encode(),
    }
    release = release_for(data)
    names = server_names(data, host.name, host.data.get("ansible_host") or host.data.get("ssh_hostname"))

    _directories()
    _credentials(secrets)
    files.put(
        name="Install metalscribe-release, which switches releases",
        src=BytesIO(release_tool()),
        dest=str(_TOOL),
        mode="755",
        user="root",
        group="root",
    )
    files.put(
        name="Install the command line",
        src=str(Path(__file__).parent / "metalscribe.sh"),
        dest="/usr/local/bin/metalscribe",
        mode="755",
        user="root",
        group="root",
    )
    files.put(
        name="Describe the host for `metalscribe doctor`",
        src=StringIO(host_json(host_document(data, names))),
        dest=str(DOCUMENT),
        mode="644",
        user="root",
        group="root",
    )
    _companions(data, machine)
    for name, content in staged.items():
        files.put(
            name=f"Lay {name} ready",
            src=BytesIO(content),
            dest=str(ROOT / "staged" / name),
            mode="644",
            user="root",
            group="root",
        )
    activated(
        name="Let the release serve, if it is fit",
        release=release.id,
        wanted=fingerprint(release.id, staged),
        keep=data.keep_releases,
        words=data.gate_words,
    )
    systemd.service(
        name="Back the database up every night", service="metalscribe-backup.timer", running=True, enabled=True
    )
    proven(name="The release serves", problem=lambda: _not_serving(release.id))


@operation()
def activated(release: str, wanted: str, keep: int, words: bool) -> Generator[StringCommand]:
    """Let a release serve with the settings and the unit laid ready, unless it does.

    Args:
        release: its id.
        wanted: fingerprint of the release with its settings and its unit.
        keep: releases to keep on the host.
        words: whether the sample has to be transcribed rightly.
    """
    reasons = pending(host.get_fact(ReleaseStatus), wanted)
    if not reasons:
        host.noop(f"release {release} serves")
        return
    host.log(f"Activating {release}: {'; '.join(reasons)}")
    options = [] if words else ["--no-words"]
    yield StringCommand(str(_TOOL), "activate", "--keep", str(keep), *options, QuoteString(release))


def pending(status: dict[str, Any], wanted: str) -> list[str]:
    """Why a release has to be activated (again); nothing if it serves as wanted. Pure.

    Args:
        status: of ``metalscribe-release status --json``; empty without it.
        wanted: see :func:`activated`.
    """
    if not status.get("current"):
        return ["nothing serves yet"]
    reasons = {
        "another release, other settings or another unit": status["fingerprint"] != wanted,
        "changed by hand since": status["live_fingerprint"] != status["fingerprint"],
        "it does not run": not status["active"],
        "it is not started with the machine": not status["enabled"],
        "systemd has an older unit in mind": status["reload_needed"],
        "a credential has changed": status["credentials_changed"],
        "a switch was cut off": bool(status["interrupted"]),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _directories() -> None:
    for path, mode in ((ETC, "755"), (CREDENTIALS, "700"), (ROOT / "bin", "755"), (ROOT / "staged", "755")):
        files.directory(name=f"Make {path}", path=str(path), mode=mode, user="root", group="root")


def _secrets(data: HostData) -> dict[str, bytes]:
    """The operator's secrets by credential; the service reads each as the setting of that name."""
    given = {
        "metalscribe_database_url": data.database_url,
        "metalscribe_rate_limit_storage": data.rate_limit_storage,
    }
    if data.api_key is not None:
        given[_API_KEY] = data.api_key
    return {name: secret.get_secret_value().encode() for name, secret in given.items() if secret is not None}


def _credentials(secrets: Mapping[str, bytes]) -> None:
    for name, content in sorted(secrets.items()):
        secret_file(name=f"Store the credential {name}", path=CREDENTIALS / name, content=content)
    if _API_KEY not in secrets:
        api_key(name="Make the host's own API key")


@operation()
def api_key() -> Generator[StringCommand]:
    """A key with every scope, made on the host and known nowhere else; the doctor and the health gate use it."""
    path = str(CREDENTIALS / _API_KEY)
    if host.get_fact(ApiKeyPresent, path=path):
        host.noop("the host has its key")
        return
    # Written aside and renamed: half a key would be a key, too.
    yield StringCommand(
        f"umask 077 && head -c 32 /dev/urandom | base64 -w 0 | tr '+/' '-_' | tr -d '=' > {path}.new && mv -f {path}.new {path}"
    )


def _companions(data: HostData, machine: Machine) -> None:
    units = companions(data, machine)
    for name, content in units.items():
        files.put(
            name=f"Install {name}",
            src=StringIO(content),
            dest=str(_UNITS / name),
            mode="644",
            user="root",
            group="root",
        )
    applied(
        name="systemd reads the units",
        stamp="units",
        paths=[_UNITS / name for name in units],
        commands=["systemctl daemon-reload"],
    )
    files.put(
        name="Keep the journal as long as wanted",
        src=StringIO(journald_drop_in(data)),
        dest=str(_JOURNALD),
        mode="644",
        user="root",
        group="root",
    )
    applied(
        name="journald keeps it so",
        stamp="journald",
        paths=[_JOURNALD],
        commands=["systemctl restart systemd-journald", "journalctl --flush"],
    )
    if data.needs_gpu:
        systemd.service(
            name="Make the GPU's device nodes", service="metalscribe-gpu.service", running=True, enabled=True
        )


def _not_serving(release: str) -> str | None:
    status = host.get_fact(ReleaseStatus)
    if status.get("current") == release and status.get("active"):
        return None
    return f"release {release} does not serve; see: metalscribe-release status, journalctl -u metalscribe"
