"""``metalscribe-release``: what puts a release into service on a host, behind a health gate, and takes it back.

Packed into one file (see :mod:`metalscribe_provision.service.tool`) that runs on the host's own Python, 3.10 or later, with
nothing but the standard library: a release that does not work must not be what judges itself.
"""
