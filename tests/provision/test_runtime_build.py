"""The script that builds a release on a host: run for real, with small wheels in the place of the real ones.

``runuser`` is stood in for (see shell_host): only root may act as somebody else. uv and the virtual environments are real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shell_host import ShellHost
from small_wheels import make_wheel, sha256

from metalscribe_provision.runtime import uv
from metalscribe_provision.runtime.operations import BUILD_SCRIPT

IMPORTED = ("av", "ctranslate2", "faster_whisper", "onnxruntime", "uvicorn")
LARGE = "# " + "x" * (70 << 10) + "\n"
VERSION = uv.pinned_uv(uv.BOOTSTRAP.read_text(encoding="utf-8"))[0]

Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What is ``/opt/metalscribe`` on a host, with uv installed."""
    folder = tmp_path / "opt"
    (folder / "releases").mkdir(parents=True)
    installed = folder / f"uv-{VERSION}"
    installed.mkdir()
    (installed / "uv").symlink_to(uv.find_uv())
    return folder


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """What a deploy brought for one release."""
    folder = tmp_path / "opt" / "incoming" / "1.0-000000000001"
    wheels = [make_wheel(folder / "wheels", name) for name in IMPORTED]
    large = {"large/__init__.py": "", "large/library.so": LARGE, "large/module.py": LARGE}
    wheels.append(make_wheel(folder / "wheels", "large", modules=large))
    pinned = (f"{wheel.name.split('-')[0]}==1.0 --hash=sha256:{sha256(wheel)}\n" for wheel in wheels)
    (folder / "requirements.txt").write_text("".join(pinned), encoding="utf-8")
    main = {"metalscribe/__init__.py": "def main():\n    print('metalscribe 1.0')\n"}
    make_wheel(folder, "metalscribe", modules=main, scripts={"metalscribe": "metalscribe:main"})
    (folder / "release.json").write_text('{"id": "1.0-000000000001", "version": "1.0"}', encoding="utf-8")
    return folder


@pytest.fixture
def build(root: Path, incoming: Path, tmp_path: Path) -> Build:
    environment = {**ShellHost(tmp_path / "programs").environment, "UV_CACHE_DIR": str(tmp_path / "unused")}

    def run(release: str = "1.0-000000000001") -> subprocess.CompletedProcess[str]:
        arguments = (str(root), str(incoming), release, sys.executable, VERSION, "metalscribe", "bundle")
        command = ["sh", str(BUILD_SCRIPT), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)

    return run


def test_a_release_is_built_complete(build: Build, root: Path) -> None:
    done = build()
    assert (done.returncode, done.stderr) == (0, "")
    release = root / "releases" / "1.0-000000000001"
    described = json.loads((release / "release.json").read_text())
    assert described["id"] == "1.0-000000000001"
    assert described["version"] == "1.0"
    assert described["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert described["built_at"].endswith("Z")
    program = subprocess.run([release / "venv/bin/metalscribe"], check=True, capture_output=True, text=True)
    assert program.stdout == "metalscribe 1.0\n"
    # The service cannot write beside its modules, so their bytecode is there.
    for name in (*IMPORTED, "metalscribe"):
        assert list(release.glob(f"venv/lib/*/site-packages/{name}/__pycache__/__init__.*.pyc")), name
    writable = [path for path in release.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert writable == []


def test_a_complete_release_is_left_alone(build: Build, root: Path, incoming: Path) -> None:
    build()
    shutil.rmtree(incoming)
    release = root / "releases" / "1.0-000000000001"
    before = {path: path.lstat().st_mtime_ns for path in release.rglob("*")}
    assert build().returncode == 0
    assert {path: path.lstat().st_mtime_ns for path in release.rglob("*")} == before


def test_a_build_that_was_cut_off_is_thrown_away(build: Build, root: Path) -> None:
    for name in ("1.0-000000000001", "0.9-000000000000"):
        (root / "releases" / name / "venv").mkdir(parents=True)
        (root / "releases" / name / "venv" / "half").write_text("")
    assert build().returncode == 0
    assert not (root / "releases" / "1.0-000000000001" / "venv" / "half").exists()
    assert not (root / "releases" / "0.9-000000000000").exists()


def test_other_releases_stay_and_share_what_is_large_and_the_same(build: Build, root: Path) -> None:
    build()
    assert build("1.0-000000000002").returncode == 0
    first, second = (
        {path.name: path for path in (root / "releases" / name).glob("venv/lib/*/site-packages/large/*.*")}
        for name in ("1.0-000000000001", "1.0-000000000002")
    )
    assert first["library.so"].samefile(second["library.so"])
    # Bytecode is bound to a module's time of change.
    assert not first["module.py"].samefile(second["module.py"])


def test_two_builds_at_once_are_one(build: Build, root: Path, incoming: Path, tmp_path: Path) -> None:
    environment = ShellHost(tmp_path / "programs").environment
    arguments = (str(root), str(incoming), "1.0-000000000001", sys.executable, VERSION, "metalscribe", "bundle")
    first = subprocess.Popen(["sh", str(BUILD_SCRIPT), *arguments], env=environment)
    second = build()
    assert (first.wait(120), second.returncode) == (0, 0)
    assert (root / "releases" / "1.0-000000000001" / "release.json").exists()


def break_it(incoming: Path, what: str) -> None:
    requirements = incoming / "requirements.txt"
    if what == "hash":
        make_wheel(incoming / "wheels", "av", modules={"av/__init__.py": "changed = True"})
    elif what == "missing":
        next((incoming / "wheels").glob("av-*")).unlink()
    elif what == "unpinned":
        requirements.write_text(requirements.read_text().replace(" --hash=", " # "), encoding="utf-8")
    elif what == "library":
        wheel = make_wheel(incoming / "wheels", "av", modules={"av/__init__.py": "raise ImportError('no libav')"})
        others = [line for line in requirements.read_text().splitlines() if not line.startswith("av==")]
        requirements.write_text("\n".join([*others, f"av==1.0 --hash=sha256:{sha256(wheel)}\n"]), encoding="utf-8")
    else:
        crash = {"metalscribe/__init__.py": "def main():\n    raise SystemExit(3)\n"}
        make_wheel(incoming, "metalscribe", modules=crash, scripts={"metalscribe": "metalscribe:main"})


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("hash", "could not be installed"),
        ("missing", "could not be installed"),
        ("unpinned", "could not be installed"),
        ("library", "a native library cannot be loaded"),
        ("crash", "the new release does not start"),
    ],
)
def test_what_is_not_right_makes_no_release(build: Build, root: Path, incoming: Path, what: str, said: str) -> None:
    break_it(incoming, what)
    done = build()
    assert done.returncode == 1
    assert said in done.stderr
    assert not (root / "releases" / "1.0-000000000001" / "release.json").exists()


def test_uv_comes_out_of_its_wheel(build: Build, root: Path, incoming: Path) -> None:
    real = (root / f"uv-{VERSION}" / "uv").resolve()
    shutil.rmtree(root / f"uv-{VERSION}")
    (root / "uv-0.0.1").mkdir()
    script = f'#!/bin/sh\nexec {real} "$@"\n'
    make_wheel(incoming / "wheels", "uv", VERSION, modules={f"uv-{VERSION}.data/scripts/uv": script})
    assert build().returncode == 0
    assert os.access(root / f"uv-{VERSION}" / "uv", os.X_OK)
    assert [path.name for path in root.glob("uv-*")] == [f"uv-{VERSION}"]
