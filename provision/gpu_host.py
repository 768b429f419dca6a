"""A GPU host, from a bare Debian or Ubuntu to a TLS endpoint: ``pyinfra @ansible/inventory.ini provision/gpu_host.py``."""

from metalscribe_provision.edge.deploy import edge
from metalscribe_provision.firewall.deploy import firewall
from metalscribe_provision.driver.deploy import driver
from metalscribe_provision.hostdata import parse_host_data
from metalscribe_provision.model.deploy import model
from metalscribe_provision.monitoring.deploy import monitoring
from metalscribe_provision.preflight.deploy import preflight
from metalscribe_provision.runtime.deploy import runtime
from metalscribe_provision.service.deploy import service
from pyinfra import host

data = parse_host_data(host.name, host.data.dict())

preflight(data)
driver(data)
runtime(data)
model(data)
service(data)
edge(data)
firewall(data)
monitoring(data)
