"""Every host by its groups: ``pyinfra @ansible/inventory.ini provision/site.py``, with ``--dry`` to see the plan, ``--limit`` to choose."""  # noqa: A005  (what it is called in the field)

from pathlib import Path

from pyinfra import host, local, logger

if "gpu_hosts" in host.groups:
    local.include(str(Path(__file__).with_name("gpu_host.py")))
else:
    host.log("is not in the group gpu_hosts: nothing is done there", log_func=logger.warning)
