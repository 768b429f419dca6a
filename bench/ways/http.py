"""metalscribe over HTTP: the service in processes of its own, its clients all in this one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import psutil
from typing_extensions import override

from bench.recordings import Recording
from bench.ways.client import Client, Refused, events
from bench.ways.metrics import batches, parse_series
from bench.ways.service import RequestLines, Service
from bench.ways.way import Answer, Setup, Way

_TARGET: Final = "/transcribe"
_JOBS: Final = "/jobs"
_METRICS: Final = "/metrics"
_LOG_SECONDS: Final = 5.0
_LOG_POLL_SECONDS: Final = 0.05
_LOADING_SECONDS: Final = 600.0
_POLL_SECONDS: Final = 0.5


class OverHttp(Way):
    """``POST /transcribe``, streamed where the service can."""

    def __init__(self, setup: Setup) -> None:
        self._service = Service(setup)
        self._fields = {"language": setup.language} if setup.language else {}
        if setup.segments:
            self._fields["include_segments"] = "true"
        self._client: Client | None = None
        self._lines = RequestLines(self._service.log_path)
        self._streams = False
        self._known: dict[str, dict[str, Any]] = {}
        self._counts = False
        self._series_before: dict[str, float] = {}
        self._cpu_before = 0.0
        self._patience = 0.0

    @property
    @override
    def pid(self) -> int:
        return self._service.pid

    @property
    @override
    def model_pid(self) -> int | None:
        """The service's largest child; the others decode."""
        children = psutil.Process(self.pid).children(recursive=True)
        return max(children, key=lambda child: child.memory_info().rss).pid if children else None

    @override
    async def start(self) -> None:
        await asyncio.to_thread(self._service.start)
        self._client = Client(self._service.port, self._service.key)
        await self._ready(self._client)
        self._streams = _streams(json.loads(await self._client.get("/openapi.json")))
        self._counts = await _is_there(self._client, _METRICS)

    @override
    async def close(self) -> None:
        if self._client is not None:
            self._client.close()
        await asyncio.to_thread(self._service.stop)

    @override
    async def transcribe(self, recording: Recording) -> Answer:
        if self._client is None:
            raise RuntimeError("not started")
        begin = time.perf_counter()
        first: float | None = None
        document: Any = None
        fields = {**self._fields, "stream": "true"} if self._streams_worthwhile(recording) else self._fields
        async with self._client.upload(_TARGET, recording.path, fields) as (head, body):
            if head.headers.get("content-type", "").startswith("text/event-stream"):
                async for event in events(body):
                    if event.name == "segment" and first is None:
                        first = time.perf_counter() - begin
                    if event.name in {"done", "error", "failed"}:
                        document = event.data
            else:
                document = json.loads(b"".join([piece async for piece in body]))
        latency = time.perf_counter() - begin
        return Answer(
            recording=recording,
            text=_text(document),
            latency_seconds=latency,
            first_segment_seconds=first,
            mark=head.headers["x-request-id"],
        )

    @override
    @asynccontextmanager
    async def behind(self, recording: Recording, count: int) -> AsyncIterator[None]:
        """As jobs."""
        if self._client is None:
            raise RuntimeError("not started")
        jobs: list[str] = []
        try:
            for _ in range(count):
                async with self._client.upload(_JOBS, recording.path, self._fields, "audio") as (_, body):
                    answer = json.loads(b"".join([piece async for piece in body]))
                jobs.append(f"{_JOBS}/{answer['job_id']}")
            yield
        finally:
            for job in jobs:
                await self._client.delete(job)

    @override
    async def begin(self) -> None:
        self._known = self._lines.read()
        self._series_before = await self._series()
        self._cpu_before = time.process_time()

    @override
    async def end(self) -> dict[str, float]:
        cpu = time.process_time() - self._cpu_before
        self._patience = time.monotonic() + _LOG_SECONDS
        return {"client_cpu_seconds": cpu, **batches(self._series_before, await self._series())}

    @override
    def completed(self, answer: Answer) -> Answer:
        """With its queue wait, from the service's log: a line for each request, written just after its answer."""
        while answer.mark not in self._known and time.monotonic() < self._patience:
            self._known |= self._lines.read()
            if answer.mark not in self._known:
                time.sleep(_LOG_POLL_SECONDS)
        return answer.waited(self._known.get(answer.mark, {}).get("queue_seconds"))

    async def _ready(self, client: Client) -> None:
        """A model that takes long to load is waited for; the service listens before it is ready then."""
        patience = time.monotonic() + _LOADING_SECONDS
        while True:
            try:
                await client.get("/readyz")
            except Refused:
                if time.monotonic() > patience:
                    raise
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return

    async def _series(self) -> dict[str, float]:
        if self._client is None or not self._counts:
            return {}
        return parse_series((await self._client.get(_METRICS)).decode())

    def _streams_worthwhile(self, recording: Recording) -> bool:
        return self._streams and recording.seconds > 60


def _streams(openapi: Any) -> bool:
    """Whether the service's own description of the form has ``stream``."""
    operation = openapi["paths"][_TARGET]["post"]
    (form,) = operation["requestBody"]["content"].values()
    return "stream" in form["schema"]["properties"]


async def _is_there(client: Client, target: str) -> bool:
    try:
        await client.get(target)
    except Refused as refused:
        if refused.status == HTTPStatus.NOT_FOUND:
            return False
        raise
    return True


def _text(document: Any) -> str:
    """Of a transcript, or of an event that carries one."""
    if isinstance(document, dict):
        if isinstance(document.get("text"), str):
            return str(document["text"])
        for value in document.values():
            if isinstance(value, dict) and isinstance(value.get("text"), str):
                return str(value["text"])
    raise RuntimeError(f"the service answered without a text: {str(document)[:300]}")
