"""A stand-in for a Proxmox VE cluster's API, as far as the Terraform provider uses it for a GPU machine.

What is real: TLS, tokens, permissions, the form-encoded requests, what a configuration looks like after Proxmox has stored it, tasks
that run, fail and are asked for, state that outlives the process. What is simulated: nodes, storages and machines are entries
in a file. A machine "runs" when its entry says so, unless a hypervisor is plugged in (:class:`pve.machines.Hypervisor`): the one of
``tests/vm/hypervisor.py`` boots it, with deviations of its own that are listed there.

Deviations from Proxmox VE 9, as far as they are known:

* The reason phrase of an answer is HTTP's own. Proxmox puts the first line of its message there; here it is in the body's
  ``message`` alone, where Proxmox has it too.
* ``/simulator/…`` beside ``/api2/json`` is the tests' own: faults, and what was asked.
* Changes of a running machine's configuration hold at once; Proxmox keeps some of them pending until the next start.
* A storage has any free space, and reports what its volumes take. Volumes are names and sizes, without content, but for what
  ``download-url`` fetches: that is fetched, its checksum is checked, and it is kept beside the cluster's file.
* Tickets (``access/ticket``) are not served: tokens alone.
* Listing a storage has `content` in each entry, and listing mappings `type`, as Proxmox sends them without describing them.
* Wording was taken from Proxmox' sources where the provider or an operator depends on it; other messages say the same in words that may differ.
"""
