"""The names that a host answers to. Pure."""

from __future__ import annotations

import re
from typing import Final

from pyinfra.api.exceptions import DeployError

from metalscribe_provision.edge.site import is_address
from metalscribe_provision.hostdata import HostData, Tls

_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")


def server_names(data: HostData, inventory_name: str, address: str | None) -> tuple[str, ...]:
    """The names of the certificate and of nginx, the host's own first.

    Args:
        data: ``server_names``, if the operator gave any.
        inventory_name: the host's name in the inventory.
        address: where SSH finds it (``ansible_host``).

    Raises:
        DeployError: there are none, or not of the kind that the certificate needs.
    """
    if data.server_names:
        names = list(data.server_names)
        wrong = [name for name in names if not _is_name(name)]
        if wrong:
            raise DeployError(f"server_names: {', '.join(wrong)} cannot be a host's name")
    else:
        names = [name for name in (address or "", inventory_name.rpartition("/")[2]) if _is_name(name)]
    if data.tls is Tls.ACME:
        unfit = [name for name in names if is_address(name) or "." not in name]
        if data.server_names and unfit:
            raise DeployError(
                f"tls=acme: no ACME server certifies {', '.join(unfit)}; server_names must be public DNS names"
            )
        names = [name for name in names if name not in unfit]
    if not names:
        raise DeployError("the host has no name that a certificate could be for; set server_names")
    return tuple(dict.fromkeys(names))


def _is_name(text: str) -> bool:
    # All digits and dots but no address: a mistyped one.
    return is_address(text) or (_HOST_NAME.fullmatch(text) is not None and not re.fullmatch(r"[0-9.]+", text))
