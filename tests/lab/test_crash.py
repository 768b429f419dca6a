"""A host whose service hangs or dies, and one that loses its power: everything comes back by itself."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from lab.container import Container
from lab.deployed import Recording
from lab.https import Client
from lab.load import Load
from lab.waiting import wait_for

BACK_WITHIN: Final = 10.0
"""Seconds from the death of the process to an answer."""

WATCHDOG: Final = 30.0
"""Seconds without a sign of life after which systemd acts: WatchdogSec= of the unit."""

ABORT: Final = 10.0
"""Seconds that the process has from then to say where it hangs: TimeoutAbortSec= of the unit."""


def properties(host: Container, *names: str) -> dict[str, str]:
    """Of the service's unit."""
    printed = host.run(f"systemctl show --property={','.join(names)} metalscribe.service").stdout
    return dict(line.split("=", 1) for line in printed.splitlines())


def transcribed(api: Client, recording: Recording) -> bool:
    """Whether a recording that is sent now is transcribed; waits for that as long as a client does."""
    answer = api.transcribe(recording.path.read_bytes())
    return answer.status == http.client.OK and recording.words in answer.json["text"].lower()


def test_a_service_that_hangs_is_restarted_and_who_asked_meanwhile_is_answered(
    host: Container, api: Client, recording: Recording
) -> None:
    before = properties(host, "MainPID", "WatchdogUSec", "TimeoutAbortUSec")
    assert (before["WatchdogUSec"], before["TimeoutAbortUSec"]) == (f"{WATCHDOG:g}s", f"{ABORT:g}s")
    host.run(f"kill -STOP {before['MainPID']}")
    began = time.monotonic()
    with ThreadPoolExecutor(4) as clients:
        waiting = [clients.submit(transcribed, api, recording) for _ in range(3)]
        waiting.append(clients.submit(lambda: api.ask("/readyz").status == http.client.OK))
        assert [each.result() for each in waiting] == [True] * 4
    took = time.monotonic() - began
    assert took < WATCHDOG + ABORT + BACK_WITHIN
    assert properties(host, "MainPID", "NRestarts")["MainPID"] != before["MainPID"]
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in host.journal("--unit=metalscribe", "--boot"))


@pytest.mark.parametrize("signal", ["KILL", "SEGV"])
def test_a_service_that_dies_is_back_at_once(host: Container, api: Client, recording: Recording, signal: str) -> None:
    before = properties(host, "MainPID")["MainPID"]
    host.run(f"kill -{signal} {before}")
    began = time.monotonic()
    assert transcribed(api, recording), "the request waits while there is no process"
    assert time.monotonic() - began < BACK_WITHIN
    assert properties(host, "MainPID")["MainPID"] != before


def test_what_belongs_to_the_service_may_die_too(host: Container, api: Client, recording: Recording) -> None:
    """The model's process and the decoders' are replaced by the service, which stays."""
    before = properties(host, "MainPID")["MainPID"]
    children = [pid for pid in host.run("pgrep --uid metalscribe").stdout.split() if pid != before]
    assert len(children) >= 2, "the model's process and a decoder"
    host.run(f"kill -KILL {' '.join(children)}")
    wait_for(lambda: transcribed(api, recording), "a transcription after the children were killed", within=60)
    assert properties(host, "MainPID")["MainPID"] == before


def test_nginx_that_dies_is_back(host: Container, api: Client) -> None:
    host.run("systemctl kill --signal=KILL nginx.service")

    def answers() -> bool:
        try:
            return api.ask("/healthz").status == http.client.OK
        except OSError:
            return False

    wait_for(answers, "nginx to be back", within=BACK_WITHIN)


def test_a_restart_fails_no_request(host: Container, api: Client, recording: Recording) -> None:
    with Load(api, recording.path.read_bytes(), recording.words) as load:
        for _ in range(3):
            host.run("systemctl restart metalscribe.service")
    assert not load.failures, load.account()


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_everything_comes_back_with_the_machine(host: Container, api: Client, recording: Recording, how: str) -> None:
    name = how.replace(" ", "-")
    host.run(f"metalscribe keys create {name}")
    rules = host.run("nft --stateless list table inet metalscribe").stdout
    if how == "reboot":
        host.reboot()
    else:
        host.cut_power()
        host.boot()
    assert transcribed(api, recording)
    assert host.run("systemctl is-system-running").stdout == "running\n"
    assert host.run("nft --stateless list table inet metalscribe").stdout == rules
    with pytest.raises((TimeoutError, ConnectionRefusedError)):
        api.namespace.connect(host.address, 8000, timeout=2)
    assert "metalscribe-backup.timer" in host.run("systemctl list-timers --no-legend metalscribe-backup.timer").stdout
    assert name in host.run("metalscribe keys list").stdout
    host.run("metalscribe doctor")
