"""What a client sees of a deployed host: HTTPS, verified with the internal CA, from a namespace of the lab's network."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.host import Host
from lab.network import Namespace

HTTPS: Final = 443
PATIENCE: Final = 120.0  # seconds for one answer, a restart of the service included


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, with its headers' names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Client:
    """Asks a host.

    Args:
        namespace: where it asks from.
        host: by its address.
        authority: the certificate of the CA that it believes.
        key: the API key that it shows; none if it is empty.
        patience: seconds for one answer.
    """

    def __init__(
        self, namespace: Namespace, host: Host, authority: Path, key: str = "", *, patience: float = PATIENCE
    ) -> None:
        self.namespace = namespace
        self.host = host
        self.authority = authority
        self.key = key
        self._patience = patience
        self._tls = ssl.create_default_context(cafile=str(authority))

    def connection(self) -> http.client.HTTPSConnection:
        """A connection of its own, opened by the first request and kept for the next as long as the server keeps it."""
        return _Connection(self.namespace, self.host.address, self._tls, self._patience)

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPSConnection | None = None,
    ) -> Answer:
        """Send a request and read the answer; on a new connection unless one is given.

        Raises:
            OSError, http.client.HTTPException: there was none.
        """
        shown = {"X-API-Key": self.key} if self.key else {}
        used = connection or self.connection()
        try:
            used.request(method, path, body, {**shown, **(headers or {})})
            response = used.getresponse()
            content = response.read()
        except BaseException:
            used.close()  # the next request begins with another one
            raise
        if connection is None:
            used.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)

    def transcribe(
        self, recording: bytes, *, connection: http.client.HTTPSConnection | None = None, request_id: str | None = None
    ) -> Answer:
        """Send a recording as ``curl -F file=@recording`` does."""
        boundary = "recording-of-the-lab"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="recording"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        return self.ask(
            "/transcribe",
            method="POST",
            body=head.encode() + recording + f"\r\n--{boundary}--\r\n".encode(),
            headers={
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                **({"X-Request-ID": request_id} if request_id else {}),
            },
            connection=connection,
        )

    def curl(self, path: str, *options: str, check: bool = True) -> str:
        """What curl gets, and says when it fails."""
        address = f"https://{self.host.address}{path}"
        done = self.namespace.run(
            *("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", f"{PATIENCE:g}"),
            *("--cacert", str(self.authority), *options, address),
            check=check,
            timeout=PATIENCE + 10,
        )
        return done.stdout if check else done.stdout + done.stderr


class _Connection(http.client.HTTPSConnection):
    """HTTPS from a namespace."""

    def __init__(self, namespace: Namespace, address: str, tls: ssl.SSLContext, patience: float) -> None:
        super().__init__(address, HTTPS, timeout=patience, context=tls)
        self._namespace = namespace
        self._tls = tls
        self._patience = patience

    def connect(self) -> None:
        plain = self._namespace.connect(self.host, self.port, self._patience)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
