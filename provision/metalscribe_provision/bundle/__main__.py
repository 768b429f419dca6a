"""``python -m metalscribe_provision.bundle``: make a bundle for hosts without internet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyinfra.api.exceptions import DeployError

from metalscribe_provision.bundle.making import make_bundle
from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.preflight.python import DISTRIBUTION_PYTHON


def main(arguments: list[str] | None = None) -> int:
    """Make the bundle that the arguments describe; exit status 1 if that cannot be done."""
    options = _parser().parse_args(arguments)
    extras = {*options.extra, *(["gpu"] if options.gpu else [])}
    folder = options.output
    try:
        make_bundle(folder, options.python or _default_pythons(), extras, options.model, report=_say)
    except DeployError as error:
        sys.stderr.write(f"No bundle: {error}\n")
        return 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _say(
        f"{folder} is complete ({size / 1e6:.0f} MB); check a copy of it with: cd {folder} && sha256sum --check --quiet SHA256SUMS"
    )
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _default_pythons() -> list[str]:
    return sorted(set(DISTRIBUTION_PYTHON.values()), key=lambda python: tuple(map(int, python.split("."))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metalscribe_provision.bundle",
        description="Put all that a release needs from the internet into one folder: wheels, models, checksums. "
        "What is there already and right is kept.",
    )
    parser.add_argument(
        "--output", type=Path, default=CHECKOUT / "dist" / "bundle", metavar="FOLDER", help="default: dist/bundle"
    )
    parser.add_argument(
        "--python",
        action="append",
        metavar="X.Y",
        help=f"a Python of the hosts, repeatable; default: the supported systems' ({', '.join(_default_pythons())})",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="demo, a name of `metalscribe model list`, or owner/name@commit; repeatable",
    )
    parser.add_argument("--gpu", action="store_true", help="for hosts with an NVIDIA GPU: adds cuBLAS (about 0.7 GB)")
    parser.add_argument("--extra", action="append", default=[], choices=["postgres", "redis"], help="repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
