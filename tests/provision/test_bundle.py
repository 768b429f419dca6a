"""Bundles: made from a lock file of small wheels and a real web server, read back, refused when they do not fit.

The package index is stood in for by a server that has the wheels of a small lock file; metalscribe's own wheel is the real one.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import DISTRIBUTIONS, commands, named, plan
from pyinfra.api.exceptions import DeployError
from small_wheels import make_wheel, sha256

from metalscribe_provision.bundle import __main__ as command_line
from metalscribe_provision.bundle import making
from metalscribe_provision.bundle.contents import parse_sums, read_bundle
from metalscribe_provision.bundle.making import download_wheels, make_bundle
from metalscribe_provision.bundle.wheels import Wheel
from metalscribe_provision.hostdata import Driver, HostData
from metalscribe_provision.runtime import release as release_module
from metalscribe_provision.runtime import uv
from metalscribe_provision.runtime.deploy import runtime
from metalscribe_provision.runtime.interpreter import Interpreter
from metalscribe_provision.runtime.release import release_for

VERSION = uv.pinned_uv(uv.BOOTSTRAP.read_text(encoding="utf-8"))[0]
UV_TAG = "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"
PYTHON = Interpreter("/usr/bin/python3.11", "3.11")


class Index:
    """A web server with a folder of wheels, the lock file that names them, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        index = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path.rpartition("/")[2])
                super().do_GET()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def locked(self, wheels: dict[str, list[Path]], marker: dict[str, str] | None = None) -> dict[str, Any]:
        """The document of a ``pylock.toml`` with these wheels of each package."""
        packages = []
        for name, files in wheels.items():
            entries = [{"url": f"{self.url}/{file.name}", "hashes": {"sha256": sha256(file)}} for file in files]
            package: dict[str, Any] = {"name": name, "version": files[0].name.split("-")[1], "wheels": entries}
            packages.append(package | ({"marker": marker[name]} if marker and name in marker else {}))
        return {"lock-version": "1.0", "created-by": "test", "requires-python": ">=3.11", "packages": packages}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """An index that is the lock file's: what uv would tell of either is of its wheels."""
    found = Index(tmp_path_factory.mktemp("index"))
    own = [
        make_wheel(found.folder, "compiled", tag=f"cp3{minor}-cp3{minor}-manylinux_2_28_x86_64")
        for minor in (11, 12, 13)
    ]
    foreign = [
        make_wheel(found.folder, "compiled", tag=tag)
        for tag in ("cp311-cp311-win_amd64", "cp311-cp311-manylinux_2_39_x86_64")
    ]
    wheels = {
        "compiled": [*foreign, *own],
        "pure": [make_wheel(found.folder, "pure")],
        "early": [make_wheel(found.folder, "early")],
    }
    script = {f"uv-{VERSION}.data/scripts/uv": "#!/bin/sh\n"}
    pinned = make_wheel(found.folder, "uv", VERSION, modules=script, tag=UV_TAG)
    document = found.locked(wheels, {"early": "python_full_version < '3.11.3'"})
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uv, "locked", lambda _: document)
        patch.setattr(uv, "locked_uv", lambda: found.locked({"uv": [pinned]}))
        patch.setattr(uv, "pinned_uv", lambda _: (VERSION, frozenset({sha256(pinned)})))
        yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture(scope="module")
def made(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bundle"
    make_bundle(folder, ["3.11", "3.12"], ["demo"], [], report=lambda _: None)
    return folder


@pytest.fixture
def bundle(made: Path, index: Index, tmp_path: Path) -> Path:
    """A bundle of one's own, to damage."""
    index.asked.clear()
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def test_a_bundle_has_what_hosts_of_its_pythons_need(bundle: Path) -> None:
    found = read_bundle(bundle)
    names = sorted(path.name for path in (bundle / "wheels").iterdir())
    assert names == [
        "compiled-1.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "compiled-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "early-1.0-py3-none-any.whl",
        f"metalscribe-{found.version}-py3-none-any.whl",
        "pure-1.0-py3-none-any.whl",
        f"uv-{VERSION}-{UV_TAG}.whl",
    ]
    assert (found.pythons, found.extras, found.models) == (("3.11", "3.12"), ("demo",), ())
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, check=True, capture_output=True, text=True
    )
    assert checked.stdout.count(": OK") == len(names) + 1
    found.check(found.sums)


def test_a_bundle_is_renewed_with_what_is_missing_alone(bundle: Path, index: Index) -> None:
    (bundle / "wheels" / "pure-1.0-py3-none-any.whl").write_bytes(b"damaged")
    (bundle / "wheels" / "older-0.9-py3-none-any.whl").write_bytes(b"of another lock file")
    make_bundle(bundle, ["3.11"], ["demo"], [], report=lambda _: None)
    assert index.asked == ["pure-1.0-py3-none-any.whl"]
    names = {path.name.partition("-")[0] for path in (bundle / "wheels").iterdir()}
    assert names == {"compiled", "early", "metalscribe", "pure", "uv"}
    found = read_bundle(bundle)
    assert found.pythons == ("3.11",)
    found.check(found.sums)


def test_a_bundle_that_was_not_finished_is_none(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise DeployError("no network")

    monkeypatch.setattr(making, "download_wheels", broken)
    with pytest.raises(DeployError, match="no network"):
        make_bundle(bundle, ["3.11"], ["demo"], [], report=lambda _: None)
    with pytest.raises(DeployError, match="no complete bundle: it has no SHA256SUMS"):
        read_bundle(bundle)


def test_a_folder_with_other_things_is_left_alone(index: Index, tmp_path: Path) -> None:
    (tmp_path / "home" / "wheels").mkdir(parents=True)
    (tmp_path / "home" / "wheels" / "precious.whl").write_bytes(b"")
    with pytest.raises(DeployError, match="has other things in it"):
        make_bundle(tmp_path / "home", ["3.11"], [], [], report=lambda _: None)
    assert (tmp_path / "home" / "wheels" / "precious.whl").exists()


def test_a_download_is_what_the_lock_file_says_or_is_not_kept(index: Index, tmp_path: Path) -> None:
    wanted = Wheel("pure-1.0-py3-none-any.whl", "0" * 64, f"{index.url}/pure-1.0-py3-none-any.whl")
    with pytest.raises(DeployError, match="another SHA-256 than the lock file's"):
        download_wheels([wanted], tmp_path, lambda _: None)
    gone = Wheel("gone-1.0-py3-none-any.whl", "0" * 64, f"{index.url}/gone-1.0-py3-none-any.whl")
    with pytest.raises(DeployError, match=r"gone-1\.0-py3-none-any\.whl could not be downloaded: .*404"):
        download_wheels([gone], tmp_path, lambda _: None)
    assert not list(tmp_path.glob("*.whl"))
    assert index.asked.count("gone-1.0-py3-none-any.whl") == 1


def test_an_index_with_another_uv_is_refused(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uv, "pinned_uv", lambda _: (VERSION, frozenset({"0" * 64})))
    with pytest.raises(DeployError, match=r"than bootstrap\.txt knows"):
        make_bundle(tmp_path / "bundle", ["3.11"], [], [], report=lambda _: None)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, r"no complete bundle: it has no bundle\.json"),
        (lambda folder: (folder / "bundle.json").write_text("{}"), "no bundle that this checkout understands"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 2}'), "format 2 instead of 1"),
        (
            lambda folder: (folder / "SHA256SUMS").write_text("0  ../../etc/passwd\n"),
            "a line that does not belong there",
        ),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "has no checksum"),
    ],
)
def test_what_is_no_bundle_is_refused(bundle: Path, damage: Any, said: str) -> None:
    damage(bundle)
    with pytest.raises(DeployError, match=said):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "wheels/../../up", "wheels/a/b", "models/x/../y", "wheels/..", "other"]
)
def test_sums_name_nothing_outside_the_bundle(name: str) -> None:
    assert parse_sums(f"{'0' * 64}  wheels/a-1.whl\n{'0' * 64}  models/a--b@0/model.bin\n")
    with pytest.raises(ValueError, match="does not belong there"):
        parse_sums(f"{'0' * 64}  {name}\n")


# --- deploying from it ---


def host_data(bundle: Path) -> dict[str, Any]:
    return {"driver": "none", "model": "demo", "bundle": str(bundle)}


def fresh() -> dict[Any, Any]:
    return {"uname -s": "Linux", "useradd": "/usr/sbin/useradd", **DISTRIBUTIONS["debian-12"]}


def test_a_host_gets_its_own_wheels_and_needs_no_index(bundle: Path) -> None:
    planned = plan(runtime, host_data(bundle), fresh())
    release = named(planned, "Release")
    assert release.commands[-2].endswith(f" {VERSION} metalscribe bundle")
    (archive,) = release.files.values()
    assert "compiled-1.0-cp311" in archive
    assert "early-1.0" in archive
    assert "compiled-1.0-cp312" not in archive
    # uv comes as a file, so nothing is missing where venv is.
    assert "install python3.11\n" in commands(planned) + "\n"


def test_the_release_is_the_same_from_the_bundle_and_from_the_checkout(bundle: Path) -> None:
    online = release_for(HostData(driver=Driver.NONE, model="demo"), PYTHON)
    offline = release_for(HostData(driver=Driver.NONE, model="demo", bundle=bundle), PYTHON)
    assert offline.wheel.is_relative_to(bundle)
    assert offline.id == online.id


def test_a_bundle_without_a_hosts_wheels_is_refused(bundle: Path) -> None:
    with pytest.raises(
        DeployError, match=r"lacks 1 wheels .* for Python 3\.13 .*it has Python 3\.11, 3\.12 and extras demo"
    ):
        plan(runtime, host_data(bundle), fresh() | DISTRIBUTIONS["debian-13"])


def test_a_damaged_bundle_is_refused_before_anything_is_changed(bundle: Path) -> None:
    (bundle / "wheels" / "pure-1.0-py3-none-any.whl").write_bytes(b"damaged")
    with pytest.raises(DeployError, match=r"is damaged: wheels/pure-1\.0-py3-none-any\.whl has another SHA-256"):
        plan(runtime, host_data(bundle), fresh())
    (bundle / "wheels" / "pure-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DeployError, match=r"not complete: wheels/pure-1\.0-py3-none-any\.whl is missing"):
        plan(runtime, host_data(bundle), fresh())


def test_a_bundle_of_another_source_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(description | {"source": "0" * 64}))
    release_module._release.cache_clear()
    with pytest.raises(DeployError, match="made from another state of the source"):
        plan(runtime, host_data(bundle), fresh())


def test_a_bundle_with_another_uv_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uv, "pinned_uv", lambda _: ("99.0.0", frozenset({"0" * 64})))
    with pytest.raises(DeployError, match=r"has another uv than 99\.0\.0, which bootstrap\.txt pins"):
        plan(runtime, host_data(bundle), fresh())


def test_the_command_line_makes_a_bundle_and_says_how_to_check_it(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    assert command_line.main(["--output", str(folder), "--python", "3.12", "--gpu", "--model", "demo"]) == 0
    assert "sha256sum --check --quiet SHA256SUMS" in capsys.readouterr().out
    assert (read_bundle(folder).pythons, read_bundle(folder).extras) == (("3.12",), ("demo", "gpu"))
    assert command_line.main(["--output", str(folder), "--model", "no such model"]) == 1
    assert "'no such model' is not a model" in capsys.readouterr().err
