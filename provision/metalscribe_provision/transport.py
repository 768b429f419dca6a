"""SSH without waiting for the other side to acknowledge: what pyinfra's connections to the hosts use."""

from __future__ import annotations

import socket
from typing import Any

from paramiko import Transport


def prompt_transport(connection: Any, **options: Any) -> Transport:
    """paramiko's transport over a connection that sends at once (``TCP_NODELAY``), with AES-GCM first, which is twice as fast as the rest.

    A command is a few small packets. By default the kernel keeps the second one back until the first is acknowledged (RFC 896),
    which the other side puts off for 40 ms (RFC 1122, section 4.2.3.2): 51 ms for a command that takes 6, and a deploy runs hundreds.

    Args:
        connection: a socket, or what leads to the host through another one, which has no such option.
        options: paramiko's own.
    """
    if getattr(connection, "family", None) in {socket.AF_INET, socket.AF_INET6}:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = Transport(connection, **options)
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
    return transport
