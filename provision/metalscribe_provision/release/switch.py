"""Activate, restart, roll back: each behind the health gate, with the generation before it put back where that fails."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import candidate, database, unit
from .gate import Gate, NotFit, Sample
from .generations import Generation, Generations, Refused, credentials, settings
from .layout import UNIT, Layout, read_json, write_json
from .unit import SystemdFailed, systemctl

RESTART_PATIENCE = 3600.0
"""Seconds for one restart: draining takes as long as the unit allows, then loading the model."""


class Failed(Exception):
    """What was asked for did not work out.

    Attributes:
        serving: whether the service is up again with what served before.
    """

    def __init__(self, reason: str, *, serving: bool) -> None:
        super().__init__(reason)
        self.serving = serving


@dataclass(frozen=True)
class Conditions:
    """How a switch is judged: see :class:`metalscribe_provision.release.gate.Gate`."""

    sample: Sample
    words: bool = True
    ready_secs: float = 300.0


class Switch:
    """Changes what serves on this host.

    Args:
        tell: called with what is being done, a line at a time.
    """

    def __init__(self, layout: Layout, conditions: Conditions, tell: Callable[[str], None]) -> None:
        self._layout = layout
        self._conditions = conditions
        self._tell = tell
        self.generations = Generations(layout)

    # --- what an operator asks for ---

    def activate(self, release: str, *, keep: int) -> str:
        """Let ``release`` serve, with the settings and unit laid ready; returns what was done.

        Raises:
            Refused: the release or what belongs to it is not there.
            Failed: it is not fit.
        """
        wanted = self.generations.staged(release)
        done = self._serve(wanted, seed=None)
        removed = self.generations.prune(keep)
        return done + (f"; removed {', '.join(removed)}" if removed else "")

    def roll_back(self, release: str | None, *, restore: bool) -> str:
        """Let the generation before the present one serve again, or the last one with ``release``.

        With ``restore`` the database is put back as it was when that release last served, if its tables have changed since.

        After a switch that was cut off, that is the last one that has proven itself.

        Raises:
            Refused: there is nothing to go back to, or the tables have changed and ``restore`` is not given.
            Failed: it is not fit any more.
        """
        current = self.generations.current()
        if current is None:
            raise Refused("nothing has been activated on this host yet")
        cut_off = (read_json(self._layout.switching) or {}).get("from") == current.release
        target = (
            current if cut_off and release in {None, current.release} else self.generations.before(current, release)
        )
        seed = self._database_for(target, current, restore=restore)
        return self._serve(target, seed=seed)

    def restart(self) -> str:
        """Restart what serves, behind the gate.

        Raises:
            Refused: nothing was activated yet.
            Failed: it does not come up again.
        """
        current = self.generations.current()
        if current is None:
            raise Refused("nothing has been activated on this host yet")
        self._switch(current, previous=None, seed=None)
        return f"restarted release {current.release}"

    def status(self) -> dict[str, Any]:
        """What serves, what could, and what went wrong last; reads only."""
        current, live = self.generations.current(), self.generations.live()
        record = self.generations.record(current.number) if current else {}
        before = self._previous(current)
        return {
            "current": live.release if live else None,
            "generation": current.number if current else None,
            "since": record.get("since"),
            "fingerprint": current.fingerprint if current else None,
            "live_fingerprint": live.fingerprint if live else None,
            "active": unit.is_active(UNIT),
            "enabled": unit.is_enabled(UNIT),
            "reload_needed": unit.needs_reload(UNIT),
            "credentials_changed": current is not None and record.get("credentials") != self._when_changed(current),
            "previous": {name: before.get(name) for name in ("generation", "release", "since")} if before else None,
            "interrupted": read_json(self._layout.switching),
            "failed": read_json(self._layout.failed),
            "releases": [
                {name: item[name] for name in ("id", "version", "complete", "current")}
                for item in self.generations.releases()
            ],
        }

    # --- how it is done ---

    def _previous(self, current: Generation | None) -> dict[str, Any] | None:
        """The record of what a rollback would go to, None if there is nothing."""
        try:
            return self.generations.record(self.generations.before(current, None).number) if current else None
        except Refused:
            return None

    def _serve(self, wanted: Generation, seed: Path | None) -> str:
        current, live = self.generations.current(), self.generations.live()
        interrupted = read_json(self._layout.switching) is not None
        same = (
            current is not None and live is not None and current.fingerprint == wanted.fingerprint == live.fingerprint
        )
        try:
            if not same or interrupted or not unit.is_active(UNIT):
                self._tell(f"trying release {wanted.release} beside what serves")
                self._try(wanted, seed)
            self._switch(wanted, previous=None if same else current, seed=seed)
        except NotFit as error:
            self._note_failure(wanted, "candidate", str(error))
            serving = unit.is_active(UNIT)
            raise Failed(
                f"release {wanted.release} is not fit, and was not put into service: {error}", serving=serving
            ) from None
        self._layout.failed.unlink(missing_ok=True)
        return f"release {wanted.release} serves" if not same else f"release {wanted.release} was restarted"

    def _try(self, wanted: Generation, seed: Path | None) -> None:
        gate = self._gate(wanted)
        if not self._own_database(wanted):
            self._tell("its database is a server's, which stays as it is: the candidate gets an empty one of its own")
        elif seed is None:
            seed = self._layout.run / "seed.db"
            self._layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not database.copy(self._layout.database, seed):
                seed = None
        try:
            candidate.prove(self._layout, wanted, gate, seed, self._tell)
        finally:
            (self._layout.run / "seed.db").unlink(missing_ok=True)

    def _switch(self, wanted: Generation, *, previous: Generation | None, seed: Path | None) -> None:
        """Put ``wanted`` in place and restart; ``previous`` is what to go back to."""
        gate, handed_over = self._gate(wanted), self._when_changed(wanted)
        backup = self._back_up_before(wanted, previous)
        # A switch that is cut off twice still knows what the first one knew.
        to_go_back_to = backup or (self._backup_of_cut_off(previous) if previous else None)
        note = {
            "to": wanted.release,
            "from": previous.release if previous else None,
            "backup": to_go_back_to.name if to_go_back_to else None,
        }
        with _undisturbed():
            write_json(self._layout.switching, note)
            self._put_or_go_back(wanted, gate, previous, backup, seed, handed_over)
            self._layout.switching.unlink(missing_ok=True)

    def _put_or_go_back(
        self,
        wanted: Generation,
        gate: Gate,
        previous: Generation | None,
        backup: Path | None,
        seed: Path | None,
        handed_over: dict[str, list[int]],
    ) -> None:
        try:
            self._put(wanted, gate, seed)
            self.generations.keep(wanted, credentials=handed_over, backup=backup.name if backup else None)
        except Exception as error:  # noqa: BLE001  (a full disk, a defect of this very program: what served comes back)
            reason = f"{error}" or type(error).__name__
            self._note_failure(wanted, "switch", reason)
            if previous is None:
                raise Failed(f"release {wanted.release} does not serve: {reason}", serving=False) from None
            self._tell(f"release {wanted.release} does not serve ({reason}); putting {previous.release} back")
            self._go_back(previous, backup, reason)
            raise Failed(
                f"release {wanted.release} did not serve and was taken back; {previous.release} serves again: {reason}",
                serving=True,
            ) from None

    def _put(self, wanted: Generation, gate: Gate, seed: Path | None) -> None:
        self.generations.put_in_place(wanted)
        systemctl("daemon-reload")
        if not unit.is_enabled(UNIT):
            systemctl("enable", UNIT)
        self._tell(f"restarting {UNIT}; connections wait meanwhile")
        if seed is not None:
            # The only way that closes the listening socket: the database cannot be replaced under a running service.
            systemctl("stop", UNIT, patience=RESTART_PATIENCE)
            database.put_back(seed, self._layout.database)
        if unit.properties(UNIT, ["ActiveState"])["ActiveState"] == "failed":
            systemctl("reset-failed", UNIT)
        began = time.monotonic()
        try:
            systemctl("restart", UNIT, patience=RESTART_PATIENCE)
        except SystemdFailed as error:
            raise NotFit(f"it does not start: {error}; its last words:\n{unit.last_words(UNIT)}") from None
        gate.pass_through(_crash_of(unit.properties(UNIT, ["MainPID"])["MainPID"]))
        self._tell(f"ready after {time.monotonic() - began:.1f} s")

    def _go_back(self, previous: Generation, backup: Path | None, reason: str) -> None:
        """After a failed switch: what served before serves again, with its database if the tables were changed."""
        changed = None
        if backup is not None and self._own_database(previous):
            try:
                if database.schema_in_use(self._layout.database) != database.schema(backup):
                    changed = backup
            except database.DatabaseFailed:
                changed = backup
        try:
            self._put(previous, self._gate(previous), changed)
        except Exception as error:  # noqa: BLE001  (as above)
            raise Failed(
                f"{reason}; and {previous.release} does not come up again either: {error}", serving=False
            ) from None
        self._layout.switching.unlink(missing_ok=True)

    def _gate(self, generation: Generation) -> Gate:
        port = int(settings(generation).get("METALSCRIBE_PORT", "8000"))
        try:
            key = self._layout.api_key.read_text().strip()
        except FileNotFoundError:
            raise Refused(f"{self._layout.api_key} is missing; run the deploy") from None
        if not re.fullmatch(r"[!-~]+", key):
            raise Refused(f"{self._layout.api_key} holds no key: one line of printable ASCII without spaces; mend it")
        conditions = self._conditions
        return Gate(port, key, conditions.sample, words=conditions.words, ready_secs=conditions.ready_secs)

    def _own_database(self, generation: Generation) -> bool:
        return "metalscribe_database_url" not in credentials(generation)

    def _back_up_before(self, wanted: Generation, previous: Generation | None) -> Path | None:
        """Before another release touches the database: a copy to go back to.

        If a switch was cut off after its release had changed the tables, the copy from before that one.
        """
        if previous is None or previous.release == wanted.release or not self._own_database(previous):
            return None
        made = database.back_up(
            self._layout.database, self._layout.backups, f"before-{wanted.release}-{int(time.time())}.db"
        )
        earlier = self._backup_of_cut_off(previous)
        if made and earlier and database.schema(earlier) != database.schema(made):
            return earlier
        return made

    def _backup_of_cut_off(self, previous: Generation) -> Path | None:
        """The copy that a switch away from ``previous`` had made when it was cut off."""
        cut_off = read_json(self._layout.switching) or {}
        if cut_off.get("from") != previous.release or not cut_off.get("backup"):
            return None
        path = self._layout.backups / str(cut_off["backup"])
        return path if path.is_file() else None

    def _database_for(self, target: Generation, current: Generation, *, restore: bool) -> Path | None:
        """For a rollback: the copy of the database to put back, None if the present one will do."""
        if not self._own_database(current):
            return None
        later = [number for number in self.generations.numbers() if number > target.number > 0]
        names = [name for number in later if (name := self.generations.record(number).get("backup"))]
        backup = self._layout.backups / str(names[0]) if names else self._backup_of_cut_off(target)
        if backup is None or not backup.is_file():
            return None
        if database.schema_in_use(self._layout.database) == database.schema(backup):
            return None
        if not restore:
            raise Refused(
                f"the database's tables have been changed since by a release that {target.release} knows nothing of. "
                f"With --restore-database it is put back as it was before ({backup}); what came since is lost"
            )
        return backup

    def _when_changed(self, generation: Generation) -> dict[str, list[int]]:
        """When each credential of a generation last changed; systemd hands the service a copy at its start."""
        found = (self._layout.credentials / name for name in sorted(credentials(generation)))
        return {path.name: [path.stat().st_mtime_ns, path.stat().st_size] for path in found if path.is_file()}

    def _note_failure(self, wanted: Generation, step: str, reason: str) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            write_json(self._layout.failed, {"release": wanted.release, "step": step, "reason": reason, "at": when})
        except OSError as error:
            # Going back is what counts, and the disk may be full.
            self._tell(f"{self._layout.failed} cannot be written ({error}); the reason was: {reason}")


def _crash_of(process: str) -> Callable[[], str | None]:
    """Why the service's main process has ended, None while it lives; systemd may have started another one by then."""

    def ended() -> str | None:
        state = unit.properties(UNIT, ["ActiveState", "Result", "MainPID"])
        if state["ActiveState"] == "active" and state["MainPID"] == process:
            return None
        return f"it ended ({state['Result']}); its last words:\n{unit.last_words(UNIT)}"

    return ended


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Neither Ctrl-C nor SIGTERM ends this halfway; what is started meanwhile (systemctl) inherits that."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
