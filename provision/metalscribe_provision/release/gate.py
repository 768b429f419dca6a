"""The health gate: is what listens there a metalscribe that does its work?"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

_BUSY = frozenset({429, 503})
"""Answers of a service that is well and has too much to do; what it says after them is what counts."""

_PAUSE_SECS = 1.0

_ALIKE = 0.7
"""Share of a sample's words that have to be there, in order. Whisper's smallest model gets above 0.9."""


class NotFit(Exception):
    """The release does not do its work; the message tells what."""


@dataclass(frozen=True)
class Sample:
    """A recording of English speech, and what it says."""

    audio: bytes
    text: str


@dataclass(frozen=True)
class Gate:
    """What a service on loopback has to pass.

    Attributes:
        port: where it listens.
        key: one that it has to accept.
        sample: what it has to transcribe.
        words: whether its answer to the sample has to be right, which takes a model that knows English.
        ready_secs, answer_secs: patience for loading the model, and for one transcription.
        steady_secs: how long it has to live on after that.
    """

    port: int
    key: str
    sample: Sample
    words: bool = True
    ready_secs: float = 300.0
    answer_secs: float = 600.0
    steady_secs: float = 3.0

    def pass_through(self, dead: Callable[[], str | None]) -> None:
        """Wait until the service is ready, then let it transcribe, and see that it lives on.

        Args:
            dead: why waiting is pointless, None while it is not.

        Raises:
            NotFit: it is not ready in time, lets strangers in, answers wrongly, or ends.
        """
        self._wait_until_ready(dead)
        # 429: so many have tried without a key that it does not even look any more.
        status, _ = self._answered(None, dead, _BUSY - {429})
        if status not in {401, 429}:
            raise NotFit(f"a transcription without a key was answered with {status}, not 401")
        status, body = self._answered(self.key, dead, _BUSY)
        if status != 200:
            raise NotFit(f"the sample's transcription was answered with {status}: {body[:300]!r}")
        try:
            text = json.loads(body)["text"]
        except (ValueError, KeyError, TypeError):
            raise NotFit(f"the sample's transcription is not what it should be: {body[:300]!r}") from None
        if self.words:
            likeness = alike(self.sample.text, text)
            if likeness < _ALIKE:
                raise NotFit(f"the sample was transcribed wrongly ({likeness:.0%} of its words): {text[:200]!r}")
        self._live_on(dead)

    def health(self) -> dict[str, Any]:
        """What the service says of itself; empty while it does not answer."""
        try:
            status, body = self._request("GET", "/health", {"X-API-Key": self.key}, b"", 10.0)
            document = json.loads(body) if status == 200 else {}
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _wait_until_ready(self, dead: Callable[[], str | None]) -> None:
        until = time.monotonic() + self.ready_secs
        seen = "it did not answer"
        while time.monotonic() < until:
            reason = dead()
            if reason is not None:
                raise NotFit(reason)
            try:
                status, body = self._request("GET", "/readyz", {}, b"", 10.0)
            except (OSError, http.client.HTTPException) as error:
                seen = f"no answer ({_reason(error)})"
            else:
                if status == 200:
                    return
                seen = f"{status} {body[:200].decode(errors='replace')}"
            time.sleep(0.5)
        raise NotFit(f"not ready within {self.ready_secs:g} s; last seen: {seen}")

    def _answered(self, key: str | None, dead: Callable[[], str | None], busy: frozenset[int]) -> tuple[int, bytes]:
        """The answer to the sample. Behind the gate others are waiting too, and the model may be loaded by the first of them."""
        until = time.monotonic() + self.answer_secs
        while True:
            status, body = self._post(key)
            if status not in busy or time.monotonic() > until:
                return status, body
            if (reason := dead()) is not None:
                raise NotFit(reason)
            time.sleep(_PAUSE_SECS)

    def _live_on(self, dead: Callable[[], str | None]) -> None:
        until = time.monotonic() + self.steady_secs
        while True:
            if (reason := dead()) is not None:
                raise NotFit(f"it transcribed the sample, then {reason}")
            if time.monotonic() > until:
                return
            time.sleep(0.5)

    def _post(self, key: str | None) -> tuple[int, bytes]:
        boundary = "metalscribe-release-sample"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="sample.flac"\r\n'
            "Content-Type: audio/flac\r\n\r\n"
        )
        body = head.encode() + self.sample.audio + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        if key is not None:
            headers["X-API-Key"] = key
        try:
            return self._request("POST", "/transcribe", headers, body, self.answer_secs)
        except (OSError, http.client.HTTPException) as error:
            raise NotFit(f"the sample's transcription was not answered: {_reason(error)}") from None

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: bytes, patience: float
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def alike(expected: str, text: object) -> float:
    """Share of ``expected``'s words that are in ``text``, in order; 0 … 1."""
    wanted, found = _words(expected), _words(str(text))
    blocks = SequenceMatcher(None, wanted, found, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(len(wanted), len(found), 1)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())
