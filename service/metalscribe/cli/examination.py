"""The checks of ``metalscribe doctor`` that concern the service itself, carried out one after another.

:func:`main` is a program's: it prints each check as a line of JSON. That is how root has them carried out as the service's
user (:mod:`metalscribe.cli.host.service_user`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from metalscribe.errors import MetalscribeError
from metalscribe.settings import Settings, load_settings

if TYPE_CHECKING:
    from metalscribe.cli.findings import Finding

QUICK: Final = "--quick"

# In the order in which one thing builds upon another: name, and the module whose function of that name looks. They are
# imported one by one, since a broken installation is among what is to be found.
_MODULES: Final = {
    "settings": "examination",
    "libraries": "devices",
    "state_directory": "checks",
    "disk_space": "checks",
    "database": "checks",
    "api_keys": "checks",
    "model": "checks",
    "device": "devices",
    "cublas": "devices",
    "compute_type": "devices",
    "decoder": "trial",
    "service": "checks",
    "transcription": "trial",
}
NAMES: Final = tuple(_MODULES)
"""All checks; the last is the one that takes long."""

_QUICK_VERSIONS: Final = {"model": "model_files"}


@dataclass(frozen=True, slots=True)
class Check:
    """One check and how it came out: ``status`` is ok, warn or fail."""

    name: str
    status: str
    detail: str
    hint: str


def examine(names: Sequence[str] = NAMES, *, quick: bool = False) -> Iterator[Check]:
    """Carry checks out; one that breaks is a failure like any other.

    Without settings that make sense there is nothing that most of them could go by: those are left out then.
    """
    read: list[Settings] = []
    told = carried_out("settings", lambda: _settings(read))
    for name in names:
        function = _QUICK_VERSIONS.get(name, name) if quick else name
        if name == "settings":
            yield told
        elif name == "libraries":
            yield carried_out(name, lambda: _look(name, function))  # noqa: B023  (called at once)
        elif read:
            yield carried_out(name, lambda: _look(name, function, read[0]))  # noqa: B023


def carried_out(name: str, look: Callable[[], Finding]) -> Check:
    """Carry one check out, whatever happens."""
    try:
        finding = look()
    except MetalscribeError as error:
        return Check(name, "fail", error.detail, "")
    except Exception as error:  # noqa: BLE001  (whatever breaks is what the doctor was called for)
        return Check(name, "fail", f"{type(error).__name__}: {error}", "")
    return Check(name, finding.status.value, finding.detail, finding.hint)


def main(arguments: Sequence[str]) -> None:
    """Carry the checks out that ``arguments`` name, after :data:`QUICK` or not, and print each at once."""
    from metalscribe.log import configure_logging  # noqa: PLC0415

    configure_logging("warning")
    names = [argument for argument in arguments if argument != QUICK]
    for check in examine(names, quick=QUICK in arguments):
        print(json.dumps(asdict(check)), flush=True)


def _settings(read: list[Settings]) -> Finding:
    from metalscribe.cli.findings import Finding, Status  # noqa: PLC0415

    settings = load_settings()
    read.append(settings)
    given, known = len(settings.model_fields_set), len(Settings.model_fields)
    return Finding(
        Status.OK, f"{given} of {known} are set, the others at their defaults; `metalscribe config` lists them"
    )


def _look(name: str, function: str, *arguments: Settings) -> Finding:
    module = importlib.import_module(f"metalscribe.cli.{_MODULES[name]}")
    look: Callable[..., Finding] = getattr(module, function)
    return look(*arguments)
