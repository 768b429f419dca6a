"""``metalscribe-release`` as one file: a zip archive that the host's Python runs. Pure."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final

from metalscribe_provision.common import CHECKOUT

_PACKAGE: Final = "metalscribe_release"
_SOURCE: Final = Path(__file__).parent.parent / "release"
_SAMPLES: Final = CHECKOUT / "service" / "metalscribe" / "samples"
_BEGINNING: Final = (1980, 1, 1, 0, 0, 0)  # of time, for zip archives
_LAUNCHER: Final = f"import sys\nfrom {_PACKAGE}.__main__ import main\nsys.exit(main())\n"


def release_tool() -> bytes:
    """The program, byte for byte the same for the same source."""
    archive = io.BytesIO()
    # The host's own Python, without the user's or the environment's packages.
    archive.write(b"#!/usr/bin/python3 -I\n")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        contents = {"__main__.py": _LAUNCHER.encode()}
        contents |= {f"{_PACKAGE}/{path.name}": path.read_bytes() for path in sorted(_SOURCE.glob("*.py"))}
        contents |= {f"{_PACKAGE}/{name}": (_SAMPLES / name).read_bytes() for name in ("sample.flac", "sample.txt")}
        for name, content in contents.items():
            about = zipfile.ZipInfo(name, _BEGINNING)
            about.external_attr = 0o644 << 16
            file.writestr(about, content, zipfile.ZIP_DEFLATED)
    return archive.getvalue()
