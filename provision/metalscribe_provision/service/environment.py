"""The service's settings as the unit's environment file. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pyinfra.api.exceptions import DeployError

from metalscribe_provision.common import PORT, STATE
from metalscribe_provision.hostdata import HostData
from metalscribe_provision.service_settings import SERVER_SETTINGS

_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]+")


def environment(data: HostData, model: str) -> dict[str, str]:
    """The variables of one host, sorted: what the deploy decides, then what the operator set.

    Args:
        data: the host as its operator wants it.
        model: METALSCRIBE_MODEL, a folder on the host or ``demo``.
    """
    decided = {
        "device": "cuda" if data.needs_gpu else "cpu",
        **SERVER_SETTINGS,
        **data.settings,
        "host": "127.0.0.1",
        "port": str(PORT),
        "state_dir": str(STATE),
        "model": model,
        # Models come with the deploy, pinned and verified; the service asks no hub.
        "offline": "true",
    }
    return {f"METALSCRIBE_{name.upper()}": decided[name] for name in sorted(decided)}


def render(values: Mapping[str, str]) -> str:
    """An environment file that systemd and a shell read alike.

    Raises:
        DeployError: a value has a character that the two read differently.
    """
    lines = [
        "# metalscribe's settings; `metalscribe config` explains them. Written by the deploy: set metalscribe_<name> in the",
        "# inventory to change one. Secrets are not here but in credentials/.",
    ]
    for name, value in values.items():
        if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029'\\]", value):
            raise DeployError(f"{name}: a quote, a backslash or a control character cannot be part of a setting")
        lines.append(f"{name}={value}" if _PLAIN.fullmatch(value) else f"{name}='{value}'")
    return "\n".join(lines) + "\n"
