"""How Proxmox says no."""

from __future__ import annotations

from collections.abc import Mapping


class PveError(Exception):
    """An answer that is no success.

    Args:
        status: HTTP's.
        message: what Proxmox would say.
        errors: by parameter, for those that were not accepted.
    """

    def __init__(self, status: int, message: str, errors: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = dict(errors or {})


def forbidden(path: str, *privileges: str) -> PveError:
    """The user lacks privileges on a path."""
    return PveError(403, f"Permission check failed ({path}, {'|'.join(privileges)})")


def invalid(**errors: str) -> PveError:
    """Parameters are not as the API describes them."""
    return PveError(
        400, "Parameter verification failed.", {name.replace("_", "-"): text for name, text in errors.items()}
    )


def missing_machine(node: str, vmid: int) -> PveError:
    """There is no such machine on the node."""
    return PveError(500, f"Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist")
