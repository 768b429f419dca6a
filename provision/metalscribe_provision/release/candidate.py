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
from .layout import CANDIDATE_UNIT, Layout, write
from .unit import SystemdFailed, systemctl

PORT = 8001

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
    with _installed(layout, generation, gate.key, seed):
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
        health = gate.health()
        if health.get("model_state") == "waiting_for_gpu":
            raise _NoRoom
        if health.get("model_state") == "failed":
            return f"its model does not load: {health.get('model_detail')}"
        state = unit.properties(CANDIDATE_UNIT, ["ActiveState", "Result"])
        if state["ActiveState"] in {"failed", "inactive"}:
            return f"it ended ({state['Result']}); its last words:\n{unit.last_words(CANDIDATE_UNIT)}"
        return None

    try:
        systemctl("start", "--no-block", CANDIDATE_UNIT)
        gate.pass_through(dead)
    except SystemdFailed as error:
        raise NotFit(str(error)) from None
    finally:
        systemctl("stop", CANDIDATE_UNIT, patience=400)


@contextmanager
def _installed(layout: Layout, generation: Generation, key: str, seed: Path | None) -> Iterator[None]:
    """The candidate's unit, settings, key and state, as long as the trial lasts."""
    _remove(layout)
    layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        write(layout.run / "settings.env", generation.files["metalscribe.env"], 0o600)
        write(layout.run / "candidate.env", _environment(layout), 0o600)
        write(layout.run / "key", key.encode(), 0o600)
        drop_in = _DROP_IN.format(
            release=layout.releases / generation.release, run=layout.run, state=layout.candidate_state.name
        )
        write(layout.runtime_units / CANDIDATE_UNIT, generation.files["metalscribe.service"])
        write(layout.runtime_units / f"{CANDIDATE_UNIT}.d" / "candidate.conf", drop_in.encode())
        if seed is not None:
            layout.candidate_state.mkdir(mode=0o700)
            shutil.chown(layout.candidate_state, database.USER, database.USER)
            copied = layout.candidate_state / "metalscribe.db"
            shutil.copyfile(seed, copied)
            shutil.chown(copied, database.USER, database.USER)
            copied.chmod(0o600)
        systemctl("daemon-reload")
        yield
    finally:
        _remove(layout)
        systemctl("daemon-reload")


def _remove(layout: Layout) -> None:
    if unit.properties(CANDIDATE_UNIT, ["LoadState"])["LoadState"] == "loaded":
        systemctl("stop", CANDIDATE_UNIT, patience=400)
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
        "PRELOAD": "true",
        "WHEN_UNLOADED": "queue",
        "IDLE_TIMEOUT_SECS": "0",
        "RATE_LIMIT": "1000/minute",
        "GPU_POLL_INTERVAL_SECS": "5",
    }
    if device is not None:
        values |= {"DEVICE": device, "COMPUTE_TYPE": "auto"}
    return "".join(f"METALSCRIBE_{name}={value}\n" for name, value in values.items()).encode()
