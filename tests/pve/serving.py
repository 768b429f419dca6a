"""The simulator behind TLS on loopback, in a thread of the tests' process."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from .api import Simulator

_PATIENCE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Served:
    """Where a simulator answers.

    Attributes:
        endpoint: as PROXMOX_VE_ENDPOINT wants it.
        certificate: what to trust, a file.
    """

    simulator: Simulator
    endpoint: str
    certificate: Path


@contextmanager
def served(simulator: Simulator, folder: Path, at: socket.socket | None = None) -> Iterator[Served]:
    """Serve while the block runs; the certificate is made for it.

    Args:
        simulator: what answers.
        folder: for the certificate and its key.
        at: where it listens, if not on loopback.
    """
    with at or socket.create_server(("127.0.0.1", 0)) as listening:
        address, port = listening.getsockname()
        certificate, key = _certificate(folder, address)
        server = uvicorn.Server(
            uvicorn.Config(
                simulator.app,
                ssl_certfile=certificate,
                ssl_keyfile=key,
                log_level="error",
                timeout_graceful_shutdown=1,
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="pve")
        thread.start()
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not server.started:
                if time.monotonic() > deadline or not thread.is_alive():
                    raise RuntimeError("the simulator does not come up")
                time.sleep(0.02)
            yield Served(simulator, f"https://{address}:{port}/", certificate)
        finally:
            server.should_exit = True
            thread.join()


def _certificate(folder: Path, address: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pve.test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "pve.pem", folder / "pve.key"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, secret
