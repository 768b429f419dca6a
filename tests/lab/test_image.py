"""The image: built whole or not at all, and not removed while somebody runs on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import image as module
from lab import sources
from lab.conftest import HERE
from lab.image import image, key
from lab.lab import Lab
from lab.waiting import wait_for


def processes_that_name(text: str) -> list[str]:
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if text in line]


def test_a_killed_build_leaves_no_image_and_no_process(lab: Lab, tmp_path: Path) -> None:
    environment = {**os.environ, "METALSCRIBE_LAB_CACHE": str(tmp_path), "PYTHONPATH": str(HERE.parent)}
    build = "from lab.image import image\nwith image(): raise SystemExit('it was to be killed before')"
    with subprocess.Popen([sys.executable, "-c", build], env=environment) as process:
        wait_for(lambda: list(tmp_path.glob("building-*/made/var/lib/dpkg")), "the build to be under way", within=120)
        assert processes_that_name(str(tmp_path))
        process.kill()
    wait_for(lambda: not processes_that_name(str(tmp_path)), "the build's processes to die with it")
    assert [path.name.split("-")[0] for path in tmp_path.iterdir() if path.is_dir()] == ["building"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


def test_images_of_older_recipes_go_unless_somebody_runs_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALSCRIBE_LAB_CACHE", str(tmp_path))
    names = iter(["bookworm-container-1", "bookworm-container-2", "bookworm-container-3"])
    (tmp_path / "building-bookworm-container-interrupted").mkdir()

    def there() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir() if path.is_dir())

    def of_the_next_recipe() -> Path:
        name = next(names)
        monkeypatch.setattr(module, "key", lambda _: name)
        path = tmp_path / name
        path.mkdir()  # as if built: what is tried is what becomes of the others
        return path

    first = of_the_next_recipe()
    with image() as root:
        assert (root, there()) == (first, ["bookworm-container-1"])
        of_the_next_recipe()
        with image():
            assert there() == ["bookworm-container-1", "bookworm-container-2"]
    of_the_next_recipe()
    with image():
        assert there() == ["bookworm-container-3"]


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = key()
    assert key() == before
    other = tmp_path / "sources.py"
    other.write_text("# another\n", encoding="utf-8")
    monkeypatch.setattr(sources, "__file__", str(other))
    assert key() != before
