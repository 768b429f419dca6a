"""Requests and answers against the names that Proxmox publishes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pve.published import Call, calls, general

CALLS = calls()
SENT_UNDESCRIBED = {"GET /nodes/{node}/storage/{storage}/content: content", "GET /cluster/mapping/pci: type"}
"""Proxmox sends them, and the provider reads them; its description of the answers lacks them."""
PREFIX = "/api2/json"


def call_of(method: str, path: str) -> Call:
    """The published call that a request is."""
    found = [call for call in CALLS if call.matches(method, path.removeprefix(PREFIX))]
    assert found, f"{method} {path} is not published"
    return max(found, key=lambda call: len(call.path))


def unpublished_parameters(asked: Iterable[tuple[str, str, frozenset[str]]]) -> set[str]:
    """Parameters that a call does not have, each as ``POST /nodes/{node}/qemu: name``."""
    found = set()
    for method, path, names in asked:
        call = call_of(method, path)
        known = call.parameters | set(re.findall(r"{(\w+)}", call.path))  # those of the path may be sent again
        found |= {f"{method} {call.path}: {name}" for name in map(general, names) if name not in known}
    return found


def unpublished_names(method: str, path: str, body: dict[str, Any]) -> set[str]:
    """Names in an answer that the call's has not."""
    call = call_of(method, path)
    data = body.get("data")
    entries = data if isinstance(data, list) else [data]
    names = {general(name) for entry in entries if isinstance(entry, dict) for name in entry}
    if call.answer is None:
        return set()
    return {f"{method} {call.path}: {name}" for name in names - call.answer} - SENT_UNDESCRIBED
