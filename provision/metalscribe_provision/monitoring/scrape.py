"""Prometheus' targets, all GPU hosts of an inventory: ``python -m metalscribe_provision.monitoring.scrape inventory.ini``.

Prints a document for ``file_sd_configs`` (https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config);
``docs/monitoring/prometheus.yml`` shows where it belongs. Nothing in it is secret.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyinfra.api.exceptions import DeployError, InventoryError

from metalscribe_provision.connector import AnsibleInventoryConnector
from metalscribe_provision.edge.names import server_names
from metalscribe_provision.hostdata import HostData, parse_host_data
from metalscribe_provision.monitoring.exporters import wanted

GROUP: Final = "gpu_hosts"

SERVICE: Final = "service"
"""In the label ``exporter``: metalscribe itself, whose metrics want a key."""


def target_groups(name: str, variables: Mapping[str, Any], data: HostData) -> Iterator[dict[str, Any]]:
    """Yield the target groups of one host: its service, and each exporter on it.

    Args:
        name: in the inventory; becomes the label ``instance``, so that dashboards call the host as its operator does.
        variables: of the inventory, as its connector gives them.
        data: those that are ours, checked.

    Raises:
        DeployError: it has no name that a certificate could be for.
    """
    address = server_names(data, name, variables.get("ansible_host") or variables.get("ssh_hostname"))[0]
    bracketed = f"[{address}]" if ":" in address else address
    paths = {SERVICE: "/metrics", **{exporter.path.rpartition("/")[2]: exporter.path for exporter in wanted(data)}}
    for exporter, path in paths.items():
        labels = {"__metrics_path__": path, "exporter": exporter, "instance": name}
        yield {"targets": [f"{bracketed}:{data.https_port}"], "labels": labels}


def inventory_targets(inventory: str) -> list[dict[str, Any]]:
    """Return the target groups of all GPU hosts in an inventory's file.

    Raises:
        InventoryError: it cannot be read.
        DeployError: a host's variables are wrong.
    """
    return [
        group
        for name, variables, groups in AnsibleInventoryConnector.make_names_data(inventory)
        if GROUP in groups
        for group in target_groups(name, variables, parse_host_data(name, variables))
    ]


def main() -> int:
    """Print the targets of the inventory that is named on the command line; return the exit status."""
    if len(sys.argv) != 2:
        print("usage: python -m metalscribe_provision.monitoring.scrape INVENTORY", file=sys.stderr)  # noqa: T201
        return 2
    try:
        found = inventory_targets(sys.argv[1])
    except (InventoryError, DeployError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if not found:
        print(f"Warning: no host is in the inventory's group {GROUP}", file=sys.stderr)  # noqa: T201
    print(json.dumps(found, indent=2))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
