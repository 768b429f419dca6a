"""A GPU host, from a bare Debian or Ubuntu to a TLS endpoint: ``pyinfra @ansible/inventory.ini provision/gpu_host.py --limit gpu1``."""

from collections.abc import Sequence

from pyinfra import host, inventory
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.driver.deploy import driver
from metalscribe_provision.edge.deploy import edge
from metalscribe_provision.firewall.deploy import firewall
from metalscribe_provision.hostdata import parse_hosts
from metalscribe_provision.model.deploy import model
from metalscribe_provision.monitoring.deploy import monitoring
from metalscribe_provision.preflight.deploy import preflight
from metalscribe_provision.runtime.deploy import runtime
from metalscribe_provision.service.deploy import service


def belongs(groups: Sequence[str]) -> bool:
    """Tell a GPU host: one of that group, or one that is named on the command line (pyinfra's groups for those begin with @)."""
    return "gpu_hosts" in groups or all(group.startswith("@") for group in groups)


if not belongs(host.groups):
    raise DeployError(
        f"{host.name} is not in the group gpu_hosts: add it there, or choose hosts with --limit gpu_hosts"
    )

# The data of all hosts, so that one run tells of every mistake; nothing is planned anywhere before they are right.
chosen = sorted((each for each in inventory.get_active_hosts() if belongs(each.groups)), key=str)
data = parse_hosts({each.name: each.data.dict() for each in chosen})[host.name]

preflight(data)
driver(data)
runtime(data)
model(data)
service(data)
firewall(data)
edge(data)
monitoring(data)
