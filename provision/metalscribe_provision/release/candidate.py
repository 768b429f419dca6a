"""The candidate: the release that is to serve, tried beside the one that does, on a port and in a state of its own."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import database, unit
from .gate import Gate, NotFit
from .generations import Generation
from .layout import CANDIDATE_UNIT, UNIT, Layout, write
from .unit import SystemdFailed, systemctl

PORT = 8001

_STOP_PATIENCE = 120.0

_UNIT_DROP_IN = "zzz-metalscribe-release.conf"
"""Read after all others: systemd goes by their names."""

_DROP_IN = """\
[Unit]
Description=metalscribe, a release on trial

[Service]
ExecStart=
ExecStart={release}/venv/bin/metalscribe serve
EnvironmentFile=
EnvironmentFile={run}/settings.env
EnvironmentFile={run}/candidate.env
LoadCredential=
LoadCredential=metalscribe_api_key:{run}/key
SyslogIdentifier=metalscribe-candidate
StateDirectory=
StateDirectory={state}
Restart=no
# Nobody's work is lost with it; and should its judge be killed, it does not stay on the GPU.
TimeoutStartSec={start_secs:.0f}
TimeoutStopSec=30
RuntimeMaxSec={life_secs:.0f}
"""


def prove(layout: Layout, generation: Generation, gate: Gate, seed: Path | None, tell: Callable[[str], None]) -> None:
    """Start ``generation`` as a candidate, let it pass the gate, end it.

    Where the GPU has no room for two models, the candidate is tried on the CPU: what then remains to be shown is shown
    after the switch, behind the same gate.

    With ``seed``, a copy of the database, its migrations are tried too.

    Raises:
        NotFit: it did not pass.
    """
    gate = dataclasses.replace(gate, port=PORT, key=f"candidate-{secrets.token_urlsafe(24)}")
    with _installed(layout, generation, gate, seed):
        try:
            _try(gate)
        except _NoRoom:
            tell("the GPU has no room for a second model; trying the candidate on the CPU")
            write(layout.run / "candidate.env", _environment(layout, device="cpu"))
            _try(dataclasses.replace(gate, ready_secs=2 * gate.ready_secs))


class _NoRoom(Exception):
    """The candidate waits for GPU memory, which the service in use has."""


def _try(gate: Gate) -> None:
    def dead() -> str | None:
        state = unit.properties(CANDIDATE_UNIT, ["ActiveState", "Result"])
        if state["ActiveState"] != "active":
            return f"it ended ({state['Result']}); its last words:\n{unit.last_words(CANDIDATE_UNIT)}"
        health = gate.health()
        if health.get("model_state") == "waiting_for_gpu":
            raise _NoRoom
        if health.get("model_state") == "failed":
            return f"its model does not load: {health.get('model_detail')}"
        return None

    try:
        # Until it says that it is ready, whatever listens on its port is somebody else, who gets to see no key.
        systemctl("start", CANDIDATE_UNIT, patience=_start_secs(gate) + 60)
    except SystemdFailed as error:
        systemctl("stop", CANDIDATE_UNIT, patience=_STOP_PATIENCE)
        raise NotFit(f"it does not start: {error}; its last words:\n{unit.last_words(CANDIDATE_UNIT)}") from None
    try:
        gate.pass_through(dead)
    finally:
        systemctl("stop", CANDIDATE_UNIT, patience=_STOP_PATIENCE)


def _start_secs(gate: Gate) -> float:
    """Twice, since it may be tried again on the CPU."""
    return 2 * gate.ready_secs + 60


@contextmanager
def _installed(layout: Layout, generation: Generation, gate: Gate, seed: Path | None) -> Iterator[None]:
    """The candidate's unit, settings, key and state, as long as the trial lasts."""
    _remove(layout)
    layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        write(layout.run / "settings.env", generation.files["metalscribe.env"], 0o600)
        write(layout.run / "candidate.env", _environment(layout), 0o600)
        write(layout.run / "key", gate.key.encode(), 0o600)
        drop_in = _DROP_IN.format(
            release=layout.releases / generation.release,
            run=layout.run,
            state=layout.candidate_state.name,
            start_secs=_start_secs(gate),
            life_secs=2 * (_start_secs(gate) + gate.answer_secs),
        )
        write(layout.runtime_units / CANDIDATE_UNIT, generation.files["metalscribe.service"])
        drop_ins = layout.runtime_units / f"{CANDIDATE_UNIT}.d"
        # What an operator has changed (systemctl edit) is part of what is tried: a mistake there would end the service, too.
        for path in sorted((layout.units / f"{UNIT}.d").glob("*.conf")):
            write(drop_ins / path.name, path.read_bytes())
        write(drop_ins / _UNIT_DROP_IN, drop_in.encode())
        if seed is not None:
            layout.candidate_state.mkdir(mode=0o700)
            copied = layout.candidate_state / "metalscribe.db"
            shutil.copyfile(seed, copied)
            copied.chmod(0o600)
            # The folder last: as long as it is root's, nobody puts a link into it.
            for path in (copied, layout.candidate_state):
                shutil.chown(path, database.USER, database.USER)
        systemctl("daemon-reload")
        yield
    finally:
        _remove(layout)
        systemctl("daemon-reload")


def _remove(layout: Layout) -> None:
    if unit.properties(CANDIDATE_UNIT, ["LoadState"])["LoadState"] == "loaded":
        systemctl("stop", CANDIDATE_UNIT, patience=_STOP_PATIENCE)
        if unit.properties(CANDIDATE_UNIT, ["ActiveState"])["ActiveState"] == "failed":
            systemctl("reset-failed", CANDIDATE_UNIT)
    (layout.runtime_units / CANDIDATE_UNIT).unlink(missing_ok=True)
    shutil.rmtree(layout.runtime_units / f"{CANDIDATE_UNIT}.d", ignore_errors=True)
    for name in ("settings.env", "candidate.env", "key"):
        (layout.run / name).unlink(missing_ok=True)
    if layout.candidate_state.is_dir() and not layout.candidate_state.is_symlink():
        shutil.rmtree(layout.candidate_state)


def _environment(layout: Layout, device: str | None = None) -> bytes:
    """What differs from the settings in use; a later file wins."""
    values = {
        "HOST": "127.0.0.1",
        "PORT": str(PORT),
        "STATE_DIR": str(layout.candidate_state),
        # Its database may be a copy of the one in use: the jobs in it, and their webhooks, are not the candidate's.
        "JOBS_DIR": "",
        "JOBS_RUNNING": "0",
        "PRELOAD": "true",
        "WHEN_UNLOADED": "queue",
        "IDLE_TIMEOUT_SECS": "0",
        "RATE_LIMIT": "1000/minute",
        "GPU_POLL_INTERVAL_SECS": "5",
    }
    if device is not None:
        values |= {"DEVICE": device, "COMPUTE_TYPE": "auto"}
    return "".join(f"METALSCRIBE_{name}={value}\n" for name, value in values.items()).encode()
