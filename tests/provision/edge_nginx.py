"""A real nginx with the rendered site, on free ports of loopback, in front of a small service. Needs no root.

The service stands in for metalscribe's own, run by the same server (uvicorn with h11) as that is: it tells what reached it,
and waits in the middle of an upload or a stream until the test has seen what it came for. Client addresses are those of
127.0.0.0/8. nginx is handed its listening sockets the way it hands them to itself in an upgrade (the variable NGINX), so
there is no port to lose and nothing to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from metalscribe_provision.edge import authority
from metalscribe_provision.edge.site import Site, Version, parse_version, render_site

NAME: Final = "edge.test"

SITE: Final = Site(
    names=(NAME,),
    nginx=(1, 22, 1),
    ipv6=False,
    max_upload_mb=1,
    metrics_allow=("127.0.0.1",),
    admin_allow=("127.0.0.1",),
    http_port=0,
)


@dataclass(slots=True)
class Service:
    """What the tests see of the service behind nginx."""

    port: int
    arrived: threading.Event = field(default_factory=threading.Event)
    proceed: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Edge:
    """nginx as it runs."""

    site: Site
    folder: Path
    service: Service
    log: socket.socket

    def context(self) -> ssl.SSLContext:
        """TLS as a careful client has it: believes the internal CA, and nobody else."""
        return ssl.create_default_context(cafile=str(self.folder / "ca" / authority.CERTIFICATE))

    @contextlib.contextmanager
    def client(self, address: str = "127.0.0.1", name: str = NAME) -> Iterator[httpx.Client]:
        """An HTTP client that comes from this address and asks for this name."""
        transport = httpx.HTTPTransport(verify=self.context(), local_address=address)
        url = f"https://127.0.0.1:{self.site.https_port}"
        with httpx.Client(transport=transport, base_url=url, headers={"Host": name}, timeout=20) as client:
            client.event_hooks = {"request": [lambda request: request.extensions.update(sni_hostname=name)]}
            yield client

    @contextlib.contextmanager
    def tls(self, name: str | None = NAME, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
        """A TLS connection; without a name it asks for the address, as browsers do."""
        with (
            socket.create_connection(("127.0.0.1", self.site.https_port), timeout=20) as plain,
            (context or self.context()).wrap_socket(plain, server_hostname=name or "127.0.0.1") as secure,
        ):
            yield secure

    def log_lines(self, request_id: str) -> dict[str, Any]:
        """The access log's line about a request; others before it are skipped."""
        while True:
            _, _, text = self.log.recv(65536).decode().partition(" nginx: ")
            if text.startswith("{"):
                line: dict[str, Any] = json.loads(text)
                if line["request_id"] == request_id:
                    return line


def installed_nginx() -> Version:
    """The version of the nginx that is installed; the test is skipped where there is none."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed (apt-get install nginx)")
    told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True)
    version = parse_version(told.stderr)
    assert version is not None, told.stderr
    return version


@contextlib.contextmanager
def running(site: Site = SITE, **changes: Any) -> Iterator[Edge]:
    """Start the service, make a certificate, start nginx; all of it is gone afterwards."""
    version = installed_nginx()
    with contextlib.ExitStack() as stack:
        # A path short enough for a Unix socket.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-")))
        service = stack.enter_context(_service())
        https, http = (stack.enter_context(_listening()) for _ in range(2))
        log = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        log.bind(str(folder / "log"))
        log.settimeout(20)
        site = replace(
            site,
            nginx=version,
            https_port=https.getsockname()[1],
            http_port=http.getsockname()[1],
            service_port=service.port,
            tls_dir=str(folder / "tls"),
            log_socket=str(folder / "log"),
        )
        site = replace(site, **changes)
        write(site, folder)
        handed = (https, http) if site.acme_webroot else (https,)
        stack.enter_context(_nginx(folder, handed))
        yield Edge(site, folder, service, log)


def write(site: Site, folder: Path) -> None:
    """A whole configuration in ``folder``: nginx's own file, the site, a certificate by a CA of its own."""
    (folder / "metalscribe").mkdir()
    for name, text in render_site(site).items():
        (folder / "metalscribe" / name).write_text(text, encoding="utf-8")
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers could not enter the folder
    paths = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{user}\ndaemon off;\nworker_processes 1;\nworker_rlimit_nofile 1024;\npid {folder}/pid;\nerror_log stderr warn;\n"
        f"events {{ worker_connections 512; }}\nhttp {{\n{paths}\ninclude metalscribe/site.conf;\n}}\n",
        encoding="utf-8",
    )
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = authority.opened(folder / "ca", now).issue(key.public_key(), site.names, now)
    current = folder / "tls" / "current"
    current.mkdir(parents=True)
    (current / "fullchain.pem").write_text(authority.pem(leaf), encoding="utf-8")
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (current / "privkey.pem").write_bytes(key.private_bytes(*encoding))


@contextlib.contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen(128)
        listener.set_inheritable(True)
        yield listener


@contextlib.contextmanager
def _nginx(folder: Path, listeners: tuple[socket.socket, ...]) -> Iterator[None]:
    descriptors = [listener.fileno() for listener in listeners]
    environment = {**os.environ, "NGINX": "".join(f"{descriptor};" for descriptor in descriptors)}
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    if installed_nginx() >= (1, 19, 5):
        command += ["-e", "stderr"]  # else it complains of a log in /var/log, which is not everybody's, and goes on
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr, tested.stderr
    with (
        (folder / "stderr").open("wb") as errors,
        subprocess.Popen(command, env=environment, pass_fds=descriptors, stderr=errors) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def _service() -> Iterator[Service]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        service = Service(listener.getsockname()[1])
        config = uvicorn.Config(
            _Application(service), http="h11", lifespan="off", log_config=None, access_log=False, proxy_headers=True
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield service
        finally:
            server.should_exit = True
            service.proceed.set()
            thread.join(20)


class _Application:
    """The service: ASGI, by path."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._websocket(receive, send)
        elif scope["path"] == "/too-large":
            await _refuse(receive, send)
        elif scope["path"] in {"/jobs/1/stream", "/model/events"}:
            await self._stream(send)
        elif scope["path"] in {"/transcribe", "/jobs"}:
            await _answer(send, str(await self._received(receive)).encode())
        else:
            headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
            told = {"path": scope["path"], "client": scope["client"][0], "scheme": scope["scheme"], "headers": headers}
            await _answer(send, json.dumps(told).encode())

    async def _received(self, receive: Any) -> int:
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            if size:
                self._service.arrived.set()
            if not message.get("more_body"):
                return size

    async def _stream(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"event: progress\n\n", "more_body": True})
        await asyncio.to_thread(self._service.proceed.wait)
        await send({"type": "http.response.body", "body": b"event: done\n\n"})

    async def _websocket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "bytes": message["bytes"]})
        await send({"type": "websocket.close"})


async def _refuse(receive: Any, send: Any) -> None:
    """Answer before the body has been read; what then still comes is swallowed until nginx, which has its answer, leaves.

    A connection that is closed with something unread in it is reset, and nginx reports a bad gateway.
    """
    body = b'{"title":"the service says so"}'
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
