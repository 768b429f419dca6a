"""Plans of whole deploys without a host: pyinfra's own planning, on its ``@fake`` connector, in this process.

Nothing runs anywhere: a fact's command is looked up in ``responses`` (a substring of the command, or a compiled regular
expression, → its output), the first match wins, and what nothing matches succeeds with no output, which most facts read as
"absent" — a fresh host. A response is a string, a list of lines, or ``{"stdout": …, "stderr": …, "success": False}``.

    def test_service_is_restarted():
        planned = plan(service, {"driver": "none"}, DEBIAN_12 | {"systemctl show": "ActiveState=inactive"})
        assert "systemctl daemon-reload" in commands(planned)

``common.packages`` reads what is installed from ``dpkg``; ``installed("nginx", "curl")`` is the response for that.
"""

# mypy: untyped-calls-exclude=pyinfra
from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

from metalscribe_provision.hostdata import parse_host_data

Responses = dict[Any, Any]
"""Substring or pattern → response, joined by ``|``; more special ones go first: ``{"dpkg -l curl": …} | DEBIAN_12``."""

HOST: Final = "@fake/gpu1"
"""The planned host's name, which is what messages begin with."""


@dataclass(frozen=True, slots=True)
class PlannedOperation:
    """One operation as planned: ``name`` is "Deploy | Operation"; no commands and no files means no change."""

    name: str
    commands: tuple[str, ...] = ()
    """Shell commands as pyinfra shows them, secrets masked; operations that are no shell command by their repr."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Path on the host → text (bytes that are no text as surrogates) that is put there."""

    conditional: bool = False
    """Decided by another operation's outcome, or by a fact, while the deploy runs (``_if``)."""

    @property
    def changes(self) -> bool:
        """Whether the operation would change the host, were its condition met."""
        return bool(self.commands or self.files)


def plan(deploy: Callable[..., Any], data: Mapping[str, Any], responses: Responses) -> list[PlannedOperation]:
    """Plan ``deploy`` for one host that has these inventory variables and answers so, in the order of execution.

    Raises:
        DeployError: the deploy refuses, as its operator would see it.
        PyinfraError: a fact's command failed (``success`` False) and the fact does not cope with that.
    """
    variables = {**data, "fake_responses": responses, "fake_delay": 0.0, "fake_delay_jitter": 0.0}
    inventory = Inventory(([(HOST, variables)], {}))
    config = Config()
    state = State(inventory, config)
    host = inventory.get_host(HOST)
    contexts = ((ctx_state, state), (ctx_inventory, inventory), (ctx_config, config), (ctx_host, host))
    before = [(context, context.get()) for context, _ in contexts]
    for context, value in contexts:
        context.set(value)
    try:
        state.set_stage(StateStage.Connect)
        connect_all(state)
        state.set_stage(StateStage.Prepare)
        deploy(parse_host_data(HOST, host.data.dict(), environment={}))
        return [_planned(state, operation) for operation in host.op_hash_order]
    finally:
        for context, value in before:
            context.set(value)


def commands(planned: Sequence[PlannedOperation]) -> str:
    """Every shell command of a plan, one per line."""
    return "\n".join(command for operation in planned for command in operation.commands)


def files(planned: Sequence[PlannedOperation]) -> dict[str, str]:
    """Every file of a plan: path on the host → its text."""
    return {path: text for operation in planned for path, text in operation.files.items()}


def named(planned: Sequence[PlannedOperation], name: str) -> PlannedOperation:
    """The one operation whose name, without its deploy's, is this."""
    (found,) = (operation for operation in planned if operation.name.rpartition(" | ")[2] == name)
    return found


def installed(*names: str) -> Responses:
    """Response for the packages that are installed (pyinfra's fact DebPackages)."""
    return {"dpkg -l": [f"ii  {name}  1.0-1  amd64  made up" for name in names]}


def fit(distribution: str, **sections: str) -> Responses:
    """A fresh host of this distribution that preflight finds nothing wrong with; ``disk="…"`` replaces a part of its answer."""
    machine = {
        "system": "\n".join(DISTRIBUTIONS[distribution]["/etc/os-release"]),
        "architecture": "amd64",
        "systemd": f"booted\nsystemd {SYSTEMD[distribution]} ({SYSTEMD[distribution]}.1-1)",
        "disk": "/opt /dev/vda1 103000000 2000000 100000000 2% /\n/var/lib /dev/vda1 103000000 2000000 100000000 2% /",
        "memory": "MemTotal:       32768000 kB",
        "clock": str(int(time.time())),
        "cpu": "flags\t\t: fpu cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2",
        "deployed": "",
        **sections,
    }
    return {
        "== system": [line for name, text in machine.items() for line in (f"== {name}", *text.splitlines())],
        "id -u": ["0", "root"],
        "apt-cache madison": "installable",
        "uname -s": "Linux",
        "command -v useradd": "/usr/sbin/useradd",
        **DISTRIBUTIONS[distribution],
    }


def _planned(state: State, operation: str) -> PlannedOperation:
    (host,) = state.inventory
    data = state.get_op_data_for_host(host, operation)
    shell, uploads = [], {}
    for command in data.command_generator():
        if isinstance(command, FileUploadCommand):
            uploads[command.dest] = _text(command.src)
        else:
            shell.append(str(command) if isinstance(command, StringCommand) else repr(command))
    return PlannedOperation(
        name=", ".join(sorted(state.get_op_meta(operation).names)),
        commands=tuple(shell),
        files=uploads,
        conditional=bool(data.global_arguments["_if"]),
    )


def _text(source: Any) -> str:
    if isinstance(source, io.IOBase):
        source.seek(0)
        content = source.read()
    else:
        content = Path(source).read_bytes()
    return content if isinstance(content, str) else content.decode(errors="surrogateescape")


def _release(text: str) -> Responses:
    """Responses for ``/etc/os-release``, read alone or by pyinfra's fact LinuxDistribution."""
    lines = text.strip().splitlines()
    return {"*-release": ["/etc/os-release", *lines, "---"], "/etc/os-release": lines}


DEBIAN_12: Final = _release("""
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
""")

DEBIAN_13: Final = _release("""
PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION="13 (trixie)"
VERSION_CODENAME=trixie
DEBIAN_VERSION_FULL=13.1
ID=debian
""")

UBUNTU_22_04: Final = _release("""
PRETTY_NAME="Ubuntu 22.04.5 LTS"
NAME="Ubuntu"
VERSION_ID="22.04"
VERSION="22.04.5 LTS (Jammy Jellyfish)"
VERSION_CODENAME=jammy
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=jammy
""")

UBUNTU_24_04: Final = _release("""
PRETTY_NAME="Ubuntu 24.04.3 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.3 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=noble
""")

DISTRIBUTIONS: Final = {
    "debian-12": DEBIAN_12,
    "debian-13": DEBIAN_13,
    "ubuntu-22.04": UBUNTU_22_04,
    "ubuntu-24.04": UBUNTU_24_04,
}
"""For ``@pytest.mark.parametrize("distribution", DISTRIBUTIONS)``."""

SYSTEMD: Final = {"debian-12": 252, "debian-13": 257, "ubuntu-22.04": 249, "ubuntu-24.04": 255}
