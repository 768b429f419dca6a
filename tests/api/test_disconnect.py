"""A caller who hangs up takes his work with him."""

from __future__ import annotations

import pytest

from .harness import Caller, Service, send, silence, wait_for

pytestmark = pytest.mark.model


@pytest.mark.parametrize("mode", ["fast", "accurate"])
def test_hanging_up_stops_the_work(service: Service, long_wav: bytes, mode: str) -> None:
    request_id = f"left-{mode}"
    caller = Caller(service, long_wav, {"X-Request-ID": request_id}, f"/transcribe?mode={mode}")
    wait_for(lambda: service.queue()["chunks_running"], "the model to work")
    caller.leave()
    wait_for(service.idle, "the work to stop", 20)
    wait_for(service.uploads_are_gone, "the upload to be removed")
    (line,) = service.requests_logged(request_id)
    assert line["status"] == 499
    assert "engine_seconds" not in line
    assert not [child for child in service.children() if "sandbox" in " ".join(child.cmdline()) and child.children()]


def test_many_who_leave_harm_nobody_who_stays(service: Service, long_wav: bytes, sample: bytes) -> None:
    piece = long_wav[: 44 + 32_000 * 60]
    callers = [Caller(service, piece) for _ in range(8)]
    wait_for(lambda: service.queue()["requests"] >= 4, "them to be at work")
    for caller in callers:
        caller.leave()
    assert send(service.client(), sample).status_code == 200
    wait_for(service.idle, "the work to stop", 20)
    assert send(service.client(), silence()).status_code == 200
    wait_for(service.uploads_are_gone, "the uploads to be removed")
