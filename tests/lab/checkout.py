"""Copies of the project, each of which deploys itself: this session's own, and other releases made of it by edits.

The session deploys a copy of this checkout and not the checkout itself, so that whoever edits files meanwhile does not change what is tested.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from lab.image import cache_folder

PYTHON: Final = "3.11"
"""The image's own."""

_BUNDLE: Final = Path("dist/bundle")
_BUNDLE_WITHIN: Final = 900.0  # seconds, for a slow index


class Checkout:
    """A copy of the project's files.

    Attributes:
        folder: where it is.
        bundle: what hosts without internet install it from; made by ``make_bundle``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / _BUNDLE

    @classmethod
    def of(cls, source: Path, folder: Path) -> Checkout:
        """Copy what git tracks in ``source`` and what it would track, as it is now."""
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=source,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (source / name).is_file():  # it is not if it was removed and git does not know yet
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / name, folder / name)
        (folder / ".bootstrap").symlink_to(source / ".bootstrap")  # uv
        checkout = cls(folder)
        cache = cache_folder()
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (cache / "bundle.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            checkout.make_bundle(cache / "bundle")
            renewed = cache / "bundle.new"
            _link(checkout.bundle, renewed)
            shutil.rmtree(cache / "bundle", ignore_errors=True)
            renewed.rename(cache / "bundle")
        return checkout

    def another(self, folder: Path, *edits: tuple[str, str, str]) -> Checkout:
        """Another release: a copy in which some text is another, with a bundle of its own.

        Args:
            folder: where it is made.
            edits: a file's name, a text that is in it once, and what stands there instead. A file that is not there yet is made of an empty
                text.
        """
        shutil.copytree(
            self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("dist", ".cache", "__pycache__")
        )
        for name, before, after in edits:
            path = folder / name
            text = path.read_text(encoding="utf-8") if before else ""
            assert not before or text.count(before) == 1, f"{before!r} is not once in {name}"
            path.write_text(text.replace(before, after) if before else after, encoding="utf-8")
        made = Checkout(folder)
        made.make_bundle(self.bundle)
        return made

    def make_bundle(self, seed: Path) -> None:
        """Make its bundle, of the wheels of the bundle ``seed`` as far as there is one and they are the same."""
        if seed.is_dir():
            _link(seed, self.bundle)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("METALSCRIBE_")}
        own = os.pathsep.join(str(self.folder / part) for part in ("provision", "service"))
        done = subprocess.run(
            [sys.executable, "-m", "metalscribe_provision.bundle", "--python", PYTHON, "--model", "demo"],
            cwd=self.folder,
            env={**kept, "PYTHONPATH": own},
            capture_output=True,
            text=True,
            timeout=_BUNDLE_WITHIN,
            check=False,
        )
        assert done.returncode == 0, f"the bundle of {self.folder} could not be made:\n{done.stdout}{done.stderr}"


def _link(source: Path, target: Path) -> None:
    """Copy a bundle without its content where that can be; nothing of a bundle is ever written to in place."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
