"""What a container's systemd tells the lab about itself (sd_notify(3)): taken at once, so that it never waits for a listener."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class Notifications:
    """A socket for notifications and a thread that empties it.

    A socket of datagrams holds some ten of them (net.unix.max_dgram_qlen). systemd-nspawn passes on what the container's systemd sends, and if
    nobody takes it, first systemd-nspawn and then the systemd waits for ever.

    Args:
        path: where the socket is made, 107 bytes at most (unix(7)).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ready = threading.Event()
        self._closing = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, name=f"notifications at {path}", daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """What was said so far is of the past."""
        self._ready.clear()

    def ready_within(self, seconds: float) -> bool:
        """Wait until everything is started; False if that takes longer."""
        return self._ready.wait(seconds)

    def close(self) -> None:
        """Listen no more."""
        self._closing = True
        self._socket.shutdown(socket.SHUT_RD)  # wakes the thread
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._closing:
            if b"READY=1" in self._socket.recv(4096).splitlines():
                self._ready.set()
