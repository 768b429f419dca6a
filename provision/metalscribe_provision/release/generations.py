"""Generations: which release has served with which settings and unit, the present one and those before it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .layout import FILES, Layout, link, read_json, sync, write, write_json


class Refused(Exception):
    """What was asked for makes no sense here; nothing was touched."""


@dataclass(frozen=True)
class Generation:
    """A release with its settings and its unit.

    Attributes:
        number: counts upwards; 0 for one that has not served yet.
        files: content by name, see :data:`metalscribe_provision.release.layout.FILES`.
    """

    number: int
    release: str
    files: Mapping[str, bytes]

    @property
    def fingerprint(self) -> str:
        """The same for the same release, settings and unit."""
        return fingerprint(self.release, self.files)


def fingerprint(release: str, files: Mapping[str, bytes]) -> str:
    """SHA-256 over a release's name and its files."""
    parts = [release, *(f"{name} {hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def settings(generation: Generation) -> dict[str, str]:
    """The variables in a generation's environment file, which the deploy has written: one a line, quoted or not."""
    found = {}
    for line in generation.files["metalscribe.env"].decode().splitlines():
        name, assigned, value = line.partition("=")
        if assigned and not line.startswith("#"):
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else value
    return found


def credentials(generation: Generation) -> frozenset[str]:
    """Names of the secrets that systemd hands to a generation's service (``LoadCredential=``)."""
    unit = generation.files["metalscribe.service"].decode()
    return frozenset(re.findall(r"^LoadCredential=([^:\s]+):", unit, re.MULTILINE))


class Generations:
    """What has served on this host."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def current(self) -> Generation | None:
        """The last one that proved itself; what :meth:`live` differs from it was changed by hand or cut off midway."""
        numbers = self.numbers()
        return self.load(numbers[-1]) if numbers else None

    def live(self) -> Generation | None:
        """What is in place now, proven or not; None if something is missing."""
        try:
            release = Path(self._layout.current.readlink()).name
            return Generation(0, release, {name: self._layout.live(name).read_bytes() for name in FILES})
        except OSError:
            return None

    def staged(self, release: str) -> Generation:
        """``release`` with the settings and the unit that the deploy has laid ready.

        Raises:
            Refused: one of them is missing.
        """
        self.require_complete(release)
        try:
            return Generation(0, release, {name: (self._layout.staged / name).read_bytes() for name in FILES})
        except FileNotFoundError as error:
            raise Refused(f"{error.filename} is missing; run the deploy") from None

    def numbers(self) -> list[int]:
        """All of them, oldest first."""
        directory = self._layout.generations
        if not directory.is_dir():
            return []
        return sorted(int(path.parent.name) for path in directory.glob("[0-9]*/generation.json"))

    def load(self, number: int) -> Generation:
        """One of :meth:`numbers`."""
        folder = self._layout.generations / str(number)
        record = json.loads((folder / "generation.json").read_bytes())
        return Generation(number, record["release"], {name: (folder / name).read_bytes() for name in FILES})

    def record(self, number: int) -> dict[str, Any]:
        """What was noted of one of :meth:`numbers` when it began to serve."""
        return read_json(self._layout.generations / str(number) / "generation.json") or {}

    def keep(self, generation: Generation, **notes: Any) -> Generation:
        """Note that ``generation`` serves and has proven itself; the record comes last, and makes it count.

        A restart makes no new one: many of them would drive out what one could go back to.
        """
        numbers = self.numbers()
        number = numbers[-1] if numbers else 0
        last = self.record(number) if number else {}
        origin = self._origin(generation.number) if generation.number else None
        if last.get("fingerprint") == generation.fingerprint:
            notes["backup"] = notes.get("backup") or last.get("backup")
            origin = last.get("origin")
        else:
            number += 1
            shutil.rmtree(self._layout.generations / str(number), ignore_errors=True)
        folder = self._layout.generations / str(number)
        for name, content in generation.files.items():
            write(folder / name, content)
        document = {
            "generation": number,
            "release": generation.release,
            "fingerprint": generation.fingerprint,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "origin": origin,
            **notes,
        }
        write_json(folder / "generation.json", document)
        return Generation(number, generation.release, generation.files)

    def put_in_place(self, generation: Generation) -> None:
        """Make ``generation`` what the next start of the service uses; on a full disk, too, if it is what was there."""
        for name, content in generation.files.items():
            live = self._layout.live(name)
            if live.is_symlink() or not live.is_file() or live.read_bytes() != content:
                write(live, content)
        link(self._layout.current, f"releases/{generation.release}")

    def before(self, current: Generation, release: str | None) -> Generation:
        """What a rollback from ``current`` goes to: the one before it, or the last with a certain release.

        A generation that a rollback brought back stands where it stood at first, so that a second rollback goes further
        back and not to what the first one left.

        Raises:
            Refused: there is none, or its release is not on the host any more.
        """
        end = self._origin(current.number) if release is None and current.number else self.numbers()[-1] + 1
        for number in reversed([number for number in self.numbers() if number < end]):
            past = self.load(number)
            if past.fingerprint == current.fingerprint or (release is not None and past.release != release):
                continue
            self.require_complete(past.release)
            return past
        if release is not None and release != current.release:
            self.require_complete(release)
            return Generation(0, release, current.files)
        raise Refused("there is no earlier generation to go back to")

    def _origin(self, number: int) -> int:
        """The number under which a generation served first."""
        origin = self.record(number).get("origin")
        return origin if isinstance(origin, int) else number

    def releases(self) -> list[dict[str, Any]]:
        """All releases on the host, the newest first."""
        if not self._layout.releases.is_dir():
            return []
        live = self.live()
        found = []
        for folder in self._layout.releases.iterdir():
            if not folder.is_dir():  # the lock of whoever builds one
                continue
            about = read_json(folder / "release.json")
            found.append(
                {
                    "id": folder.name,
                    "version": about.get("version") if about else None,
                    "complete": about is not None,
                    "current": live is not None and live.release == folder.name,
                    "made": folder.stat().st_mtime,
                }
            )
        return sorted(found, key=lambda release: -float(release["made"]))

    def require_complete(self, release: str) -> None:
        """Raise Refused unless ``release`` is on the host, whole."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", release):
            raise Refused(f"{release!r} is not the name of a release")
        if not (self._layout.releases / release / "release.json").is_file():
            known = ", ".join(item["id"] for item in self.releases() if item["complete"]) or "none"
            raise Refused(f"release {release} is not on this host, or not complete; there are: {known}")

    def prune(self, keep: int) -> list[str]:
        """Remove all but the ``keep`` releases that served last, and their generations; returns the removed releases."""
        kept: list[str] = []
        for number in reversed(self.numbers()):
            release = self.record(number).get("release", "")
            if release not in kept and len(kept) < keep:
                kept.append(release)
            if release not in kept:
                _remove(self._layout.generations / str(number), "generation.json")
        for number in self.numbers()[:-20]:
            _remove(self._layout.generations / str(number), "generation.json")
        live = self.live()
        spare = {*kept, live.release if live else ""}
        removed = [item["id"] for item in self.releases() if item["id"] not in spare]
        for release in removed:
            _remove(self._layout.releases / release, "release.json")
        self._forget_credentials()
        return removed

    def _forget_credentials(self) -> None:
        """Remove the service's secrets that no generation is handed any more, and what a deploy that was cut off left of one.

        Until then they stay: without them, one that was handed them could not be gone back to.
        """
        handed = frozenset[str]().union(*(credentials(self.load(number)) for number in self.numbers()))
        for path in self._layout.credentials.glob("metalscribe_*"):
            if path.name not in handed and path != self._layout.api_key:
                path.unlink()


def _remove(folder: Path, mark: str) -> None:
    """Remove a folder, beginning with what makes it count: half of one shall not pass for a whole one."""
    (folder / mark).unlink(missing_ok=True)
    sync(folder)
    shutil.rmtree(folder)
