"""Every host by its groups: ``pyinfra @ansible/inventory.ini provision/site.py``, with ``--dry`` to see the plan, ``--limit`` to choose."""

from pyinfra import host, local

if "gpu_hosts" in host.groups:
    local.include("gpu_host.py")
