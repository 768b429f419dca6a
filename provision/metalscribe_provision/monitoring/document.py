"""``/etc/metalscribe/host.json``: what ``metalscribe doctor`` on the host must know of its deploy.

The reader, which documents each field, is ``metalscribe.cli.host.deployment.HostDocument``.
"""

from __future__ import annotations

import json
from typing import Any, Final

from metalscribe_provision.common import ETC
from metalscribe_provision.edge.operations import AUTHORITY, CURRENT
from metalscribe_provision.hostdata import HostData, Tls
from metalscribe_provision.monitoring.exporters import wanted

DOCUMENT: Final = ETC / "host.json"
"""Where it is on the host; mode 0644, since nothing in it is secret."""


def host_document(data: HostData, server_names: tuple[str, ...]) -> dict[str, Any]:
    """Return the document.

    Args:
        data: the host's variables.
        server_names: what the certificate and nginx answer to (``edge.names.server_names``), the host's own name first.
    """
    return {
        "server_names": list(server_names),
        "https_port": data.https_port,
        "tls": data.tls.value,
        "certificate": str(CURRENT / "fullchain.pem"),
        "ca": str(AUTHORITY) if data.tls is Tls.INTERNAL_CA else None,
        "gpu": data.needs_gpu,
        "words": data.gate_words,
        "firewall": data.firewall,
        "exporters": [exporter.unit for exporter in wanted(data)],
    }


def host_json(document: dict[str, Any]) -> str:
    """Return the document as the file's text."""
    return json.dumps(document, indent=2) + "\n"
