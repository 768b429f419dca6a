"""Deploys that are cut off: the next one goes on from wherever that was, and ends where an undisturbed one does."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.conftest import MakeContainer
from lab.container import Container
from lab.controller import Controller
from lab.deployed import Deployed, Recording
from lab.https import Client
from lab.network import Namespace

POINTS: Final = 5

SEED: Final = int(os.environ.get("METALSCRIBE_LAB_SEED") or random.SystemRandom().randrange(1_000_000))
"""Where the deploys are cut off; METALSCRIBE_LAB_SEED repeats what a failed test has printed."""

SWITCH: Final = "provision/gpu_host.py | Service | Let the release serve, if it is fit"


@dataclass(frozen=True, slots=True)
class Point:
    """A moment in a deploy.

    Attributes:
        operation: what is under way; None while it is being planned.
        seconds: since that began.
        following: the operation after it; None if it is the last.
    """

    operation: str | None
    seconds: float
    following: str | None


def points(deployed: Deployed, seed: int) -> Iterator[Point]:
    """Random moments, one of each fifth of an undisturbed deploy's time, in its order."""
    choice = random.Random(seed)
    operations = [None, *deployed.begun]
    began = [0.0, *deployed.begun.values()]
    for number in range(POINTS):
        moment = deployed.seconds * choice.uniform(number, number + 1) / POINTS
        index = max(place for place, begin in enumerate(began) if begin <= moment)
        following = operations[index + 1] if index + 1 < len(operations) else None
        yield Point(operations[index], moment - began[index], following)


def test_a_deploy_that_is_killed_again_and_again_comes_to_its_end(
    make_container: MakeContainer,
    controller: Controller,
    variables: Mapping[str, object],
    deployed: Deployed,
    client: Namespace,
    recording: Recording,
) -> None:
    print(f"METALSCRIBE_LAB_SEED={SEED}")  # noqa: T201 - shown when the test fails
    host = make_container("gpu3")
    inventory = controller.inventory([host], variables, name="gpu3.ini")
    for point in points(deployed, SEED):
        print(f"killed in {point.operation or 'its planning'}, {point.seconds:.1f} s after its beginning")  # noqa: T201
        with controller.start(inventory) as deploy:
            if point.operation is not None:
                assert deploy.begins(point.operation), f"it ended before that:\n{deploy.printed}"
            if point.following is not None:
                # On the host the work of a killed deploy goes on for a while, so that this one may be faster.
                deploy.begins(point.following, within=point.seconds)
            assert deploy.running, deploy.printed
            deploy.kill()
    controller.deploy(inventory).succeeded()
    assert controller.deploy(inventory).succeeded().changes == []
    assert controller.deploy(inventory, "--dry").succeeded().planned == []

    key = host.run("cat /etc/metalscribe/credentials/metalscribe_api_key").stdout.strip()
    answer = Client(client, host, deployed.authority, key).transcribe(recording.path.read_bytes())
    assert recording.words in answer.json["text"].lower()
    host.run("metalscribe doctor")
    assert host.run("systemctl is-system-running").stdout == "running\n"
    assert len(host.run("ls /opt/metalscribe/releases").stdout.split()) == 1
    left = host.run(
        "ls -d /opt/metalscribe/incoming* /var/lib/metalscribe-candidate /etc/metalscribe/*.new", check=False
    )
    assert left.stdout == ""


def test_a_switch_goes_on_when_the_connection_is_cut_and_the_next_deploy_waits_for_it(
    controller: Controller, host: Container, inventory: Path, variables: Mapping[str, object], api: Client
) -> None:
    changed = controller.inventory([host], {**variables, "metalscribe_log_level": "debug"}, name="changed.ini")
    with controller.start(changed) as deploy:
        assert deploy.begins(SWITCH), deploy.printed
        host.run("pkill -f 'sshd: root@notty'", check=False)
        assert deploy.outcome(within=120).status != 0
    controller.deploy(changed).succeeded()
    assert controller.deploy(changed).succeeded().changes == []
    assert "LOG_LEVEL=debug" in host.run("cat /etc/metalscribe/metalscribe.env").stdout
    assert api.ask("/readyz").status == 200
    told = [entry["MESSAGE"] for entry in host.journal("--identifier=metalscribe-release", "--boot")]
    assert [line for line in told if line.startswith("trying release")]
    assert "interrupted" not in " ".join(told)
