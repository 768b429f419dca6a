"""``provision/site.py`` with pyinfra's own command: who is deployed, and how mistakes in the host data are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from metalscribe_provision.common import CHECKOUT

INVENTORY = """\
gpu_hosts = [
    ("@fake/good", {"fake_delay": 0, "fake_delay_jitter": 0, "driver": "none"}),
    ("@fake/bad1", {"fake_delay": 0, "fake_delay_jitter": 0, "tls": "acme", "drivr": "open"}),
    ("@fake/bad2", {"fake_delay": 0, "fake_delay_jitter": 0, "https_port": "many", "metalscribe_api_key": ["hunter2"]}),
]
others = [("@fake/web1", {"fake_delay": 0, "fake_delay_jitter": 0})]
"""


def test_every_mistake_of_every_host_is_told_before_anything_is_planned(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.py"
    inventory.write_text(INVENTORY)
    run = subprocess.run(
        (str(Path(sys.executable).parent / "pyinfra"), str(inventory), "provision/site.py", "-y"),
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    *_, first, second = run.stderr.strip().splitlines()
    assert run.returncode == 1
    assert first.endswith(
        "@fake/bad1: drivr is not a variable of ours; did you mean driver?; tls=acme needs acme_email"
    )
    assert second.startswith(
        "@fake/bad2: metalscribe_api_key: Input should be a valid string; https_port: Input should be"
    )
    assert "[@fake/web1] is not in the group gpu_hosts: nothing is done there" in run.stderr
    for unwanted in ("Traceback", "hunter2", "Beginning operation run"):
        assert unwanted not in run.stderr + run.stdout
