"""What a host keeps of its releases: generations, going back, pruning. The switch itself needs systemd: see tests/lab."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import pytest

from metalscribe_provision.release import candidate, database, switch, unit
from metalscribe_provision.release.gate import Gate, NotFit, Sample, alike
from metalscribe_provision.release.generations import Generation, Generations, Refused, fingerprint, settings
from metalscribe_provision.release.layout import Layout, read_json, write
from metalscribe_provision.release.switch import Conditions, Failed, Switch
from metalscribe_provision.service.tool import release_tool

_SAMPLE = Path(__file__).parents[2] / "service" / "metalscribe" / "samples"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(
        root=tmp_path / "opt",
        etc=tmp_path / "etc",
        units=tmp_path / "units",
        state=tmp_path / "state",
        backups=tmp_path / "backups",
        run=tmp_path / "run",
    )


def _release(layout: Layout, name: str) -> str:
    write(layout.releases / name / "release.json", json.dumps({"version": name}).encode())
    return name


def _generation(release: str, port: int = 8000) -> Generation:
    env = f"# settings\nMETALSCRIBE_PORT={port}\nMETALSCRIBE_MODEL='a b'\n".encode()
    return Generation(0, release, {"metalscribe.env": env, "metalscribe.service": b"[Service]\n"})


def _serve(generations: Generations, generation: Generation) -> Generation:
    generations.put_in_place(generation)
    return generations.keep(generation, backup=None)


def test_nothing_has_served_yet(layout: Layout) -> None:
    generations = Generations(layout)
    assert (generations.current(), generations.live(), generations.releases(), generations.numbers()) == (
        None,
        None,
        [],
        [],
    )


def test_what_serves_is_what_was_put_in_place(layout: Layout) -> None:
    generations = Generations(layout)
    kept = _serve(generations, _generation(_release(layout, "1.0-a")))
    current, live = generations.current(), generations.live()
    assert current is not None
    assert live is not None
    assert current == kept
    assert current.number == 1
    assert live.fingerprint == current.fingerprint == fingerprint("1.0-a", current.files)
    assert layout.current.readlink() == Path("releases/1.0-a")
    assert settings(current) == {"METALSCRIBE_PORT": "8000", "METALSCRIBE_MODEL": "a b"}


def test_a_change_by_hand_shows(layout: Layout) -> None:
    generations = Generations(layout)
    kept = _serve(generations, _generation(_release(layout, "1.0-a")))
    (layout.etc / "metalscribe.env").write_text("METALSCRIBE_PORT=1\n")
    live = generations.live()
    assert live is not None
    assert live.fingerprint != kept.fingerprint


def test_the_fingerprint_tells_releases_settings_and_units_apart() -> None:
    prints = {
        _generation("1.0-a").fingerprint,
        _generation("1.0-b").fingerprint,
        _generation("1.0-a", port=8002).fingerprint,
        Generation(0, "1.0-a", {**_generation("1.0-a").files, "metalscribe.service": b""}).fingerprint,
    }
    assert len(prints) == 4


def test_a_rollback_goes_to_the_generation_before(layout: Layout) -> None:
    generations = Generations(layout)
    for name in ("1.0-a", "1.1-b", "1.2-c"):
        last = _serve(generations, _generation(_release(layout, name)))
    assert generations.before(last, None).release == "1.1-b"
    assert generations.before(last, "1.0-a").release == "1.0-a"
    assert generations.before(last, None).number == 2


def test_a_second_rollback_goes_further_back(layout: Layout) -> None:
    generations = Generations(layout)
    for name in ("1.0-a", "1.1-b", "1.2-c"):
        current = _serve(generations, _generation(_release(layout, name)))
    for expected in ("1.1-b", "1.0-a"):
        current = _serve(generations, generations.before(current, None))
        current = generations.keep(current, backup=None)  # a restart changes nothing about it
        assert current.release == expected
    with pytest.raises(Refused, match="no earlier generation"):
        generations.before(current, None)
    assert generations.before(current, "1.2-c").release == "1.2-c"
    current = _serve(generations, _generation(_release(layout, "1.3-d")))
    assert generations.before(current, None).release == "1.0-a"


def test_a_rollback_after_a_change_of_settings_goes_to_the_old_settings(layout: Layout) -> None:
    generations = Generations(layout)
    _serve(generations, _generation(_release(layout, "1.0-a")))
    last = _serve(generations, _generation("1.0-a", port=8002))
    assert settings(generations.before(last, None))["METALSCRIBE_PORT"] == "8000"


def test_a_release_that_never_served_is_tried_with_the_present_settings(layout: Layout) -> None:
    generations = Generations(layout)
    last = _serve(generations, _generation(_release(layout, "1.0-a"), port=8002))
    _release(layout, "0.9-z")
    assert generations.before(last, "0.9-z") == Generation(0, "0.9-z", last.files)


@pytest.mark.parametrize("name", ["../../etc", "", "9.9-z", ".hidden", "a/b"])
def test_what_is_no_release_is_refused(layout: Layout, name: str) -> None:
    generations = Generations(layout)
    _release(layout, "1.0-a")
    with pytest.raises(Refused):
        generations.require_complete(name)


def test_an_incomplete_release_is_refused(layout: Layout) -> None:
    (layout.releases / "1.0-a" / "venv").mkdir(parents=True)
    with pytest.raises(Refused, match="not complete"):
        Generations(layout).staged("1.0-a")


def test_nothing_laid_ready_is_refused(layout: Layout) -> None:
    with pytest.raises(Refused, match="run the deploy"):
        Generations(layout).staged(_release(layout, "1.0-a"))


def test_there_is_nothing_before_the_first(layout: Layout) -> None:
    generations = Generations(layout)
    only = _serve(generations, _generation(_release(layout, "1.0-a")))
    with pytest.raises(Refused, match="no earlier generation"):
        generations.before(only, None)


def test_pruning_keeps_what_served_last(layout: Layout) -> None:
    generations = Generations(layout)
    names = [_release(layout, f"1.{index}-a") for index in range(5)]
    _release(layout, "never-served")
    for name in names:
        _serve(generations, _generation(name))
    assert sorted(generations.prune(2)) == ["1.0-a", "1.1-a", "1.2-a", "never-served"]
    assert {item["id"] for item in generations.releases()} == {"1.3-a", "1.4-a"}
    assert generations.numbers() == [4, 5]
    assert generations.prune(2) == []


def _handed(generation: Generation, *names: str) -> Generation:
    """The generation with a service that is handed these credentials."""
    lines = "".join(f"LoadCredential={name}:/etc/metalscribe/credentials/{name}\n" for name in names)
    files = {**generation.files, "metalscribe.service": f"[Service]\n{lines}".encode()}
    return Generation(generation.number, generation.release, files)


def test_a_secret_stays_as_long_as_one_can_go_back_to_who_needs_it(layout: Layout) -> None:
    own, url = "metalscribe_api_key", "metalscribe_database_url"
    for name in (own, url, f"{own}.new", "acme_dns.ini"):
        write(layout.credentials / name, b"secret")
    generations = Generations(layout)
    _serve(generations, _handed(_generation(_release(layout, "1.0-a")), own, url))
    _serve(generations, _handed(_generation(_release(layout, "1.1-b")), own))
    generations.prune(2)
    assert {path.name for path in layout.credentials.iterdir()} == {own, url, "acme_dns.ini"}
    _serve(generations, _generation(_release(layout, "1.2-c")))
    generations.prune(2)
    assert {path.name for path in layout.credentials.iterdir()} == {own, "acme_dns.ini"}


def test_pruning_after_many_changes_of_settings(layout: Layout) -> None:
    generations = Generations(layout)
    _serve(generations, _generation(_release(layout, "1.0-a")))
    for port in range(8001, 8031):
        last = _serve(generations, _generation(_release(layout, "1.1-a"), port))
    assert generations.prune(2) == []
    assert last.number == generations.numbers()[-1]
    assert len(generations.numbers()) == 20


def test_restarts_drive_out_nothing_that_one_could_go_back_to(layout: Layout) -> None:
    generations = Generations(layout)
    _serve(generations, _generation(_release(layout, "1.0-a")))
    second = _generation(_release(layout, "1.1-b"))
    generations.put_in_place(second)
    generations.keep(second, backup="before-1.1-b.db")
    for _ in range(30):
        last = _serve(generations, second)
        generations.prune(2)
    assert generations.numbers() == [1, 2]
    assert generations.record(last.number)["backup"] == "before-1.1-b.db"
    assert generations.before(last, None).release == "1.0-a"


def test_a_generation_that_was_cut_off_does_not_count(layout: Layout) -> None:
    generations = Generations(layout)
    first = _serve(generations, _generation(_release(layout, "1.0-a")))
    (layout.generations / "2").mkdir()
    (layout.generations / "2" / "metalscribe.env").write_text("half")
    assert generations.current() == first
    assert _serve(generations, _generation(_release(layout, "1.1-b"))).number == 2


def test_a_removal_that_is_cut_off_leaves_nothing_that_counts(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = Generations(layout)
    for name in ("1.0-a", "1.1-b", "1.2-c"):
        _serve(generations, _generation(_release(layout, name)))

    def cut_off(path: Path) -> None:
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            generations.prune(2)
    assert (layout.generations / "1" / "metalscribe.env").exists()
    assert generations.numbers() == [2, 3]
    (layout.generations / "1" / "generation.json").unlink(missing_ok=True)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            generations.prune(2)
    assert [item["id"] for item in generations.releases() if not item["complete"]] == ["1.0-a"]
    with pytest.raises(Refused, match="not complete"):
        generations.require_complete("1.0-a")


def test_what_is_in_place_is_not_written_again(layout: Layout) -> None:
    """So that what served can be put back on a full disk."""
    generations = Generations(layout)
    generations.put_in_place(_generation(_release(layout, "1.0-a")))
    before = {name: layout.live(name).stat().st_ino for name in ("metalscribe.env", "metalscribe.service")}
    generations.put_in_place(_generation("1.0-a", port=8002))
    after = {name: layout.live(name).stat().st_ino for name in before}
    assert after["metalscribe.service"] == before["metalscribe.service"]
    assert after["metalscribe.env"] != before["metalscribe.env"]


def test_a_masked_unit_is_replaced_by_the_unit(layout: Layout) -> None:
    generation = _generation(_release(layout, "1.0-a"))
    layout.units.mkdir()
    layout.live("metalscribe.service").symlink_to("/dev/null")
    Generations(layout).put_in_place(generation)
    assert not layout.live("metalscribe.service").is_symlink()


# --- the switch, with a systemd that does as it is told ---


class _Host:
    """What the switch does to a host; which releases are fit, and which change the tables of the database."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.unfit: dict[str, BaseException] = {}
        self.migrating: set[str] = set()
        self.tables = "0001"
        self.candidates: list[str] = []

    @property
    def live(self) -> str:
        return self.layout.current.readlink().name

    def systemctl(self, *arguments: str, patience: float = 0) -> str:
        del patience
        if arguments[0] == "show":
            return "ActiveState=active\nMainPID=7\nUnitFileState=enabled\n"
        if arguments[0] == "restart" and self.live in self.migrating:
            self.tables = "0002"
        return ""

    def pass_through(self, dead: Callable[[], str | None]) -> None:
        assert dead() is None
        if error := self.unfit.get(self.live):
            raise error

    def back_up(self, source: Path, directory: Path, name: str) -> Path:
        del source
        write(directory / name, self.tables.encode())
        return directory / name

    def copy(self, source: Path, target: Path) -> bool:
        del source
        write(target, self.tables.encode())
        return True

    def put_back(self, backup: Path, target: Path) -> None:
        del target
        self.tables = backup.read_text()


@pytest.fixture
def host(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> _Host:
    host = _Host(layout)
    monkeypatch.setattr(unit, "systemctl", host.systemctl)
    monkeypatch.setattr(switch, "systemctl", host.systemctl)
    monkeypatch.setattr(Gate, "pass_through", lambda _, dead: host.pass_through(dead))
    monkeypatch.setattr(candidate, "prove", lambda _, generation, *rest: host.candidates.append(generation.release))
    monkeypatch.setattr(database, "back_up", host.back_up)
    monkeypatch.setattr(database, "copy", host.copy)
    monkeypatch.setattr(database, "schema", Path.read_text)
    monkeypatch.setattr(database, "schema_in_use", lambda _: host.tables)
    monkeypatch.setattr(database, "put_back", host.put_back)
    write(layout.api_key, b"a-key\n")
    for name, content in _generation("any").files.items():
        write(layout.staged / name, content)
    for name in ("1.0-a", "1.1-b", "1.2-c"):
        _release(layout, name)
    _switch(host).activate("1.0-a", keep=9)
    for name in ("1.1-b", "1.2-c"):
        _release(layout, name)
    return host


def _switch(host: _Host) -> Switch:
    return Switch(host.layout, Conditions(Sample(b"", "")), lambda line: None)


@pytest.mark.parametrize(
    "error", [NotFit("wrong words"), OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a defect")]
)
def test_whatever_goes_wrong_what_served_comes_back(host: _Host, error: Exception) -> None:
    host.unfit["1.1-b"] = error
    host.migrating.add("1.1-b")
    with pytest.raises(Failed, match=f"1.0-a serves again: {re.escape(str(error))}") as failed:
        _switch(host).activate("1.1-b", keep=9)
    assert failed.value.serving
    assert (host.live, host.tables) == ("1.0-a", "0001")
    assert read_json(host.layout.switching) is None
    assert (read_json(host.layout.failed) or {})["release"] == "1.1-b"


def test_a_reason_that_cannot_be_noted_keeps_nobody_from_going_back(host: _Host) -> None:
    host.layout.failed.mkdir()
    host.unfit["1.1-b"] = NotFit("wrong words")
    with pytest.raises(Failed, match="serves again"):
        _switch(host).activate("1.1-b", keep=9)
    assert host.live == "1.0-a"


def _cut_off(host: _Host) -> None:
    """Kill the program while the new release, which has changed the tables, is behind the gate."""
    host.unfit["1.1-b"] = KeyboardInterrupt()
    host.migrating.add("1.1-b")
    with pytest.raises(KeyboardInterrupt):
        _switch(host).activate("1.1-b", keep=9)
    assert (host.live, host.tables) == ("1.1-b", "0002")


def test_after_a_switch_that_was_cut_off_the_tables_can_still_be_put_back(host: _Host) -> None:
    _cut_off(host)
    host.unfit["1.2-c"] = NotFit("wrong words")
    with pytest.raises(Failed) as failed:
        _switch(host).activate("1.2-c", keep=9)
    assert failed.value.serving
    assert (host.live, host.tables) == ("1.0-a", "0001")
    # What came meanwhile is not lost either.
    assert sorted(path.read_text() for path in host.layout.backups.iterdir()) == ["0001", "0002"]


@pytest.mark.parametrize("release", [None, "1.0-a"])
def test_a_rollback_after_a_switch_that_was_cut_off(host: _Host, release: str | None) -> None:
    _cut_off(host)
    with pytest.raises(Refused, match="--restore-database"):
        _switch(host).roll_back(release, restore=False)
    assert host.live == "1.1-b"
    _switch(host).roll_back(release, restore=True)
    assert (host.live, host.tables) == ("1.0-a", "0001")
    assert read_json(host.layout.switching) is None


def test_a_rollback_that_is_cut_off_itself_can_be_asked_for_again(host: _Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(backup: Path, target: Path) -> None:
        raise KeyboardInterrupt(backup, target)

    _cut_off(host)
    with monkeypatch.context() as patched:
        patched.setattr(database, "put_back", cut_off)
        with pytest.raises(KeyboardInterrupt):
            _switch(host).roll_back(None, restore=True)
    assert (host.live, host.tables) == ("1.0-a", "0002")
    _switch(host).roll_back(None, restore=True)
    assert (host.live, host.tables) == ("1.0-a", "0001")


def test_neither_ctrl_c_nor_sigterm_ends_a_switch_halfway(host: _Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(gate: Gate, dead: Callable[[], str | None]) -> None:
        del gate, dead
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Gate, "pass_through", interrupted)
    assert _switch(host).activate("1.1-b", keep=9).startswith("release 1.1-b serves")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("key", ["", "two\nlines", "two words", "schlüssel"])
def test_a_key_that_is_none_is_refused_before_anything_is_touched(host: _Host, key: str) -> None:
    write(host.layout.api_key, key.encode())
    with pytest.raises(Refused, match="holds no key") as refused:
        _switch(host).activate("1.1-b", keep=9)
    assert not key or key not in str(refused.value)
    with pytest.raises(Refused, match="holds no key"):
        _switch(host).restart()
    assert host.live == "1.0-a"
    assert read_json(host.layout.switching) is None


def test_only_a_credential_that_the_service_is_handed_calls_for_a_restart(host: _Host) -> None:
    for name, content in _handed(_generation("any"), "metalscribe_api_key").files.items():
        write(host.layout.staged / name, content)
    _switch(host).activate("1.1-b", keep=9)
    write(host.layout.credentials / "acme_dns.ini", b"a DNS provider's")
    write(host.layout.credentials / "metalscribe_database_url", b"a former database's")
    assert _switch(host).status()["credentials_changed"] is False
    write(host.layout.api_key, b"another-key\n")
    assert _switch(host).status()["credentials_changed"] is True
    _switch(host).restart()
    assert _switch(host).status()["credentials_changed"] is False


# --- the gate ---


class _Service(HTTPServer):
    """Answers POST with what it is told to, one after the other, the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.without_key = [401]
        self.with_key = [200]


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, _Service)
        answers = self.server.with_key if self.headers["X-API-Key"] else self.server.without_key
        self._answer(answers.pop(0) if len(answers) > 1 else answers[0])

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, status: int) -> None:
        body = b'{"text": "so it goes"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Service]:
    monkeypatch.setattr("metalscribe_provision.release.gate._PAUSE_SECS", 0)
    with _Service() as service:
        threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True).start()
        yield service
        service.shutdown()


def _gate(service: _Service, answer_secs: float = 60) -> Gate:
    sample = Sample(b"audio", "so it goes")
    return Gate(service.server_port, "a-key", sample, ready_secs=60, answer_secs=answer_secs, steady_secs=0)


def test_a_service_that_has_too_much_to_do_is_asked_again(service: _Service) -> None:
    service.without_key = [503, 401]
    service.with_key = [503, 429, 200]
    _gate(service).pass_through(lambda: None)


def test_a_service_that_stays_busy_is_not_waited_for_without_end(service: _Service) -> None:
    service.with_key = [503]
    with pytest.raises(NotFit, match="answered with 503"):
        _gate(service, answer_secs=1).pass_through(lambda: None)


@pytest.mark.parametrize(("status", "fit"), [(401, True), (429, True), (200, False), (500, False)])
def test_strangers_are_not_served(service: _Service, status: int, fit: bool) -> None:
    service.without_key = [status]
    if fit:
        _gate(service).pass_through(lambda: None)
    else:
        with pytest.raises(NotFit, match=f"without a key was answered with {status}"):
            _gate(service).pass_through(lambda: None)


def test_a_service_that_ends_after_its_answer_is_not_fit(service: _Service) -> None:
    reasons = iter([None, "it ended"])
    with pytest.raises(NotFit, match="transcribed the sample, then it ended"):
        _gate(service).pass_through(lambda: next(reasons))


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("{whole}", True),
        ("{shouted}", True),
        ("", False),
        ("wrong", False),
        ("the the the the the the the the the the the the the the", False),
        ("{whole} {whole} {whole}", False),
    ],
)
def test_an_answer_is_judged_by_its_words(text: str, fit: bool) -> None:
    whole = (_SAMPLE / "sample.txt").read_text()
    likeness = alike(whole, text.format(whole=whole, shouted=whole.upper().replace(".", "!")))
    assert (likeness >= 0.7) is fit
    assert 0 <= likeness <= 1


def test_the_schema_of_a_copy(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('0001')")
        connection.commit()
    assert database.schema(tmp_path / "a.db") == "0001"
    assert database.schema(tmp_path / "none.db") is None


def test_looking_at_a_backup_leaves_nothing_beside_it(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('0001')")
        connection.commit()
    assert database.schema(tmp_path / "a.db") == "0001"
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_old_backups_go_and_the_newest_stays(tmp_path: Path) -> None:
    for name, age in (("a.db", 30), ("b.db", 20), ("c.db", 16)):
        (tmp_path / name).touch()
        moment = (tmp_path / name).stat().st_mtime - age * 86_400
        os.utime(tmp_path / name, (moment, moment))
    assert database.forget_older_than(tmp_path, 14) == ["a.db", "b.db"]
    assert [path.name for path in tmp_path.iterdir()] == ["c.db"]


def test_the_tool_is_one_file_that_runs_by_itself(tmp_path: Path) -> None:
    content = release_tool()
    assert content == release_tool()
    assert zipfile.ZipFile(BytesIO(content)).testzip() is None
    tool = tmp_path / "metalscribe-release"
    tool.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-I", tool, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    for command in ("activate", "rollback", "restart", "status", "backup"):
        assert command in done.stdout
