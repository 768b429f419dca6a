"""A GPU host's certificate, and nginx with it: ``pyinfra @ansible/inventory.ini provision/certificates.py --limit gpu1``.

The edge's part of ``provision/gpu_host.py``: the internal CA signs anew what has less than a third of its life left, files
are uploaded, a certificate for other names is asked for; then nginx reads it. ``provision/ops/renew-certificates.yml`` is
the way there for all hosts.
"""

from pyinfra import host

from metalscribe_provision.edge.deploy import edge
from metalscribe_provision.hostdata import parse_host_data

edge(parse_host_data(host.name, host.data.dict()))
