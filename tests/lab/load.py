"""Requests without pause while something happens to a host, and an account of every one of them."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from lab.https import Answer, Client

_FIRST_WITHIN: Final = 60.0  # seconds
_LAST_WITHIN: Final = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    """What became of a request.

    Attributes:
        loop: whose it was.
        began: seconds since the load began.
        seconds: until its end.
        answer: what came back; None if nothing did.
        failure: what went wrong, as far as the client can tell; empty if nothing did.
    """

    loop: str
    began: float
    seconds: float
    answer: Answer | None
    failure: str


class Load:
    """Five loops of requests. A context: they run as long as it lasts, and each has been answered once when it begins.

    Args:
        client: with an API key.
        recording: what is transcribed.
        words: what its transcript has to have in it.
        pace: seconds between two requests of a loop: nginx takes 20 a second of one address, and a deploy wants some of the processor.
    """

    def __init__(self, client: Client, recording: bytes, words: str, pace: float = 0.25) -> None:
        self._client = client
        self._recording = recording
        self._words = words
        self._pace = pace
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._done: list[Request] = []
        self._began = time.monotonic()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        loops: dict[str, Callable[[], None]] = {
            "healthz": lambda: self._loop("healthz", lambda: self._client.ask("/healthz")),
            "readyz": lambda: self._loop("readyz", lambda: self._client.ask("/readyz")),
            "transcribe": lambda: self._loop("transcribe", lambda: self._client.transcribe(self._recording)),
            "healthz, kept alive": lambda: self._on_one_connection(
                "healthz, kept alive", lambda connection: self._client.ask("/healthz", connection=connection)
            ),
            "transcribe, kept alive": lambda: self._on_one_connection(
                "transcribe, kept alive",
                lambda connection: self._client.transcribe(self._recording, connection=connection),
            ),
        }
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in loops.items()]
        for thread in self._threads:
            thread.start()
        with self._changed:
            everybody = self._changed.wait_for(lambda: len(self.counts) == len(loops), _FIRST_WITHIN)
        assert everybody, f"not every loop was answered within {_FIRST_WITHIN:g} s: {dict(self.counts)}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_LAST_WITHIN)
            assert not thread.is_alive(), f"the loop {thread.name} still waits for an answer"

    @property
    def counts(self) -> Counter[str]:
        """How many requests each loop has done."""
        return Counter(request.loop for request in self._done)

    @property
    def failures(self) -> list[Request]:
        """The requests that were not answered as they should be."""
        return [request for request in self._done if request.failure]

    def account(self) -> str:
        """All failures, for a message."""
        lines = [f"{len(self.failures)} of {len(self._done)} requests failed ({dict(self.counts)}):"]
        lines += [
            f"{request.loop} at {request.began:.2f} s, after {request.seconds:.2f} s: {request.failure}"
            for request in self.failures[:20]
        ]
        return "\n".join(lines)

    def _on_one_connection(self, loop: str, ask: Callable[[http.client.HTTPSConnection], Answer]) -> None:
        connection = self._client.connection()
        try:
            self._loop(loop, lambda: ask(connection))
        finally:
            connection.close()

    def _loop(self, loop: str, ask: Callable[[], Answer]) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            answer = None
            try:
                answer = ask()
                failure = self._complaint(loop, answer)
            except (OSError, http.client.HTTPException) as error:
                failure = f"{type(error).__name__}: {error}"
            request = Request(loop, began - self._began, time.monotonic() - began, answer, failure)
            with self._changed:
                self._done.append(request)
                self._changed.notify_all()
            self._stop.wait(self._pace)

    def _complaint(self, loop: str, answer: Answer) -> str:
        if answer.status != http.client.OK:
            return f"{answer.status} {answer.body[:300]!r}"
        if loop.startswith("transcribe") and self._words not in answer.json["text"].lower():
            return f"transcribed as {answer.json['text']!r}"
        return ""
