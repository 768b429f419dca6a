"""Transcribing by a service elsewhere, over its native API (``POST /transcribe``)."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import httpx

from metalscribe.cli.console import printable, warn
from metalscribe.cli.progress import OnProgress
from metalscribe.cli.work import Answer, Transcribe
from metalscribe.errors import (
    ConcurrencyLimited,
    Forbidden,
    InvalidParameter,
    MetalscribeError,
    ModelMissing,
    TryLater,
    Unauthenticated,
)
from metalscribe.render import Format
from metalscribe.transcript import Mode, Task, TranscriptionRequest

_ATTEMPTS: Final = 20
_LONGEST_WAIT: Final = 120.0
_BUSY: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

_AWAY: Final = frozenset({429, 502, 503, 504})
"""While a service restarts, or a proxy stands before none."""

_ERRORS: Final[dict[int, type[MetalscribeError]]] = {401: Unauthenticated, 403: Forbidden, 429: TryLater, 503: TryLater}

# A transcription may take hours in which nothing is sent, so nothing but the connection itself may time out; the kernel
# finds out about a service that has gone (man 7 tcp).
_TIMEOUT: Final = httpx.Timeout(None, connect=15.0, write=120.0)
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service is and how to get in.

    Attributes:
        url: its root, without a slash at the end.
        api_key: None to send none.
        tls: the authorities that may vouch for it; None for plain HTTP.
    """

    url: httpx.URL
    api_key: str | None = field(repr=False)
    tls: ssl.SSLContext | None

    @classmethod
    def at(cls, url: str, api_key: str | None, ca_file: Path | None) -> Service:
        """Check what a user gave; warns of a key that would travel in clear.

        Raises:
            InvalidParameter: it cannot work.
        """
        try:
            address = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise InvalidParameter(f"--url {url}: {error}", "url") from None
        if address.scheme not in {"http", "https"} or not address.host or address.query or address.fragment:
            raise InvalidParameter("--url must be the address of a service, such as https://host:8443.", "url")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidParameter("The API key holds characters that no key has; was it copied whole?", "api_key")
        if address.scheme == "https":
            return cls(address, api_key, _authorities(ca_file))
        if ca_file is not None:
            raise InvalidParameter("--ca-file only makes sense with an https address.", "ca_file")
        if api_key is not None and not _is_loopback(address.host):
            warn(f"the API key and the recordings travel to {address.host} unencrypted; use https.")
        return cls(address, api_key, None)


def _client(service: Service) -> httpx.AsyncClient:
    headers = {"X-API-Key": service.api_key} if service.api_key else {}
    transport = httpx.AsyncHTTPTransport(verify=service.tls or True, socket_options=_KEEPALIVE)
    # Not what the environment says about proxies and passwords: the key and the recordings go to the service alone.
    return httpx.AsyncClient(
        transport=transport, timeout=_TIMEOUT, headers=headers, trust_env=False, follow_redirects=False
    )


@asynccontextmanager
async def remote_service(service: Service, document: Format) -> AsyncIterator[Transcribe]:
    """A connection to the service; leaving the block drops what is under way, which the service then stops."""
    async with _client(service) as client:
        address = service.url.copy_with(path=f"{service.url.path.rstrip('/')}/transcribe")
        yield lambda request, progress: _answer(client, address, request, document, progress)


class JobClient:
    """The service's ``/jobs``."""

    def __init__(self, client: httpx.AsyncClient, service: Service) -> None:
        self._client = client
        self._root = service.url.path.rstrip("/")
        self._url = service.url

    def _address(self, path: str) -> httpx.URL:
        return self._url.copy_with(path=f"{self._root}{path}")

    async def submit(self, path: Path, fields: Mapping[str, str], progress: OnProgress) -> str:
        """Hand a recording in; returns the job's id.

        A connection that breaks off, and a service that is busy, are tried again: the recording becomes one job however
        often it is sent.

        Raises:
            MetalscribeError: what the service says is wrong.
        """
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        address = self._address("/jobs")
        for attempt in range(1, _ATTEMPTS + 1):
            wait: float | None = 2.0
            try:
                with _Upload(path, progress) as upload:
                    response = await self._client.post(
                        address, data=dict(fields), files={"audio": (path.name, upload)}, headers=headers
                    )
            except httpx.HTTPError as error:
                if attempt == _ATTEMPTS or isinstance(error, httpx.ConnectError):
                    raise _unreachable(address, error) from error
            else:
                if response.status_code == HTTPStatus.ACCEPTED:
                    return str(response.json()["job_id"])
                wait = _retry_after(response)
                if response.status_code not in _BUSY or wait is None or wait > _LONGEST_WAIT or attempt == _ATTEMPTS:
                    raise _refusal(address, response)
            progress(f"waiting {wait:.0f} s: the service is busy", None)
            await asyncio.sleep(wait or 1.0)
        raise RuntimeError("the last attempt returns or raises")

    async def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is now.

        Raises:
            TryLater: the service does not answer at this moment.
            MetalscribeError: what the service says is wrong.
        """
        response = await self._get(f"/jobs/{job_id}", {})
        document: dict[str, Any] = response.json()
        return document

    async def transcript(self, job_id: str, document: Format) -> str:
        """A finished job's transcript."""
        return (await self._get(f"/jobs/{job_id}", {"format": document.value})).text

    async def _get(self, path: str, query: Mapping[str, str]) -> httpx.Response:
        address = self._address(path)
        try:
            response = await self._client.get(address, params=dict(query))
        except httpx.HTTPError as error:
            raise TryLater(_unreachable(address, error).detail) from error
        if response.status_code in _AWAY:
            raise TryLater(f"{_place(address)} answers {response.status_code}")
        if response.status_code != HTTPStatus.OK:
            raise _refusal(address, response)
        return response


@asynccontextmanager
async def job_client(service: Service) -> AsyncIterator[JobClient]:
    """A connection to the service's jobs."""
    async with _client(service) as client:
        yield JobClient(client, service)


async def _answer(
    client: httpx.AsyncClient,
    address: httpx.URL,
    request: TranscriptionRequest,
    document: Format,
    progress: OnProgress,
) -> Answer:
    """Send the recording, again as often as the service says that it is busy, and return its answer."""
    attempts = 0
    while True:
        try:
            with _Upload(request.path, progress) as upload:
                response = await client.post(
                    address, data=_fields(request, document), files={"file": (request.name, upload)}
                )
        except httpx.HTTPError as error:
            raise _unreachable(address, error) from error
        wait = _retry_after(response)
        # The key's own requests are waited for, however long they take: mostly they are the other recordings.
        attempts += _code(_problem(response)) != ConcurrencyLimited.code
        if response.status_code not in _BUSY or wait is None or wait > _LONGEST_WAIT or attempts == _ATTEMPTS:
            break
        progress(f"waiting {wait:.0f} s: the service is busy", None)
        await asyncio.sleep(wait)
    if response.status_code != HTTPStatus.OK:
        raise _refusal(address, response)
    if document is not Format.JSON:
        return response.text
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise MetalscribeError(f"{_place(address)} did not answer with a transcript; is metalscribe there?")
    return answer


def _fields(request: TranscriptionRequest, document: Format) -> dict[str, str]:
    """The form's fields; what is left at its default is left out."""
    fields: dict[str, str | None] = {
        "format": document.value,
        "include_segments": "true" if document is Format.JSON else None,
        "word_timestamps": "true" if request.word_timestamps else None,
        "language": request.language,
        "task": request.task.value if request.task is not Task.TRANSCRIBE else None,
        "mode": request.mode.value if request.mode is not Mode.FAST else None,
        "prompt": request.prompt,
        "hotwords": request.hotwords,
        "vad": None if request.vad else "false",
        "audio_track": str(request.audio_track) if request.audio_track else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


class _Upload(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, progress: OnProgress) -> None:
        super().__init__(path, "r")
        self._length = path.stat().st_size
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        if data:
            self._progress("uploading", 100.0 * self.tell() / max(1, self._length))
        else:
            self._progress("transcribing", None)
        return data


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds after which the service wants to be asked again (RFC 9110, section 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        then, now = parsedate_to_datetime(text), parsedate_to_datetime(response.headers.get("Date", ""))
    except ValueError:
        return None
    return max(0.0, (then - now).total_seconds())


def _refusal(address: httpx.URL, response: httpx.Response) -> MetalscribeError:
    """What the service says is wrong, as the error that its own command line would raise."""
    problem = _problem(response)
    detail = printable(str(problem.get("detail") or ""))
    code = _code(problem)
    if response.is_redirect:
        target = printable(response.headers.get("Location", "elsewhere"))
        return MetalscribeError(f"{_place(address)} redirects to {target}; give the right address with --url")
    if response.status_code == HTTPStatus.BAD_REQUEST and code == InvalidParameter.code:
        return InvalidParameter(f"{_place(address)}: {detail}")
    if response.status_code == HTTPStatus.NOT_FOUND:
        return MetalscribeError(f"{_place(address)} has no {address.path}; is metalscribe there?")
    if code == ModelMissing.code:
        return ModelMissing(f"{_place(address)}: {detail}")
    kind = _ERRORS.get(response.status_code, MetalscribeError)
    if not detail:
        detail = f"{_place(address)} answered {response.status_code} {printable(response.reason_phrase)}"
    if kind is Unauthenticated:
        detail += "; put a key into METALSCRIBE_API_KEY"
    wait = _retry_after(response)
    if wait:
        detail += f"; try again in {wait:.0f} s"
    request_id = problem.get("request_id")
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and request_id:
        detail += f" (request {printable(str(request_id))})"
    return kind(detail)


def _problem(response: httpx.Response) -> dict[str, Any]:
    if not response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return {}
    try:
        problem = json.loads(response.content)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _code(problem: Mapping[str, Any]) -> str:
    return str(problem.get("type", "")).rpartition(":")[2]


def _unreachable(address: httpx.URL, error: httpx.HTTPError) -> MetalscribeError:
    reason = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return MetalscribeError(
            f"The certificate of {_place(address)} cannot be trusted: {reason}. For a private authority, give its "
            "certificate with --ca-file."
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return MetalscribeError(f"Cannot connect to {_place(address)}: {reason}. Is the address right, the service up?")
    return MetalscribeError(f"The connection to {_place(address)} broke off: {reason}.")


def _place(address: httpx.URL) -> str:
    """The service's address without a password that it may hold."""
    return f"{address.scheme}://{address.netloc.decode('ascii')}"


def _authorities(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()  # the machine's own authorities beside the public ones
        return context
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidParameter(f"--ca-file {ca_file}: {reason}.", "ca_file") from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
