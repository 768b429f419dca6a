"""What the deploy asks of a host."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

_PATIENCE = 100
"""Tenths of a second that an exporter has to open its port: systemd calls it started before that."""


class Candidates(FactBase[dict[str, str | None]]):
    """The version that apt would install, or has, of each of some packages; those that it has never heard of are absent."""

    def requires_command(self, packages: Sequence[str]) -> str:  # noqa: ARG002
        """Debian's own."""
        return "apt-cache"

    default = dict

    def command(self, packages: Sequence[str]) -> StringCommand:
        """One paragraph per package that apt has heard of."""
        return StringCommand("LC_ALL=C", "apt-cache", "policy", *(QuoteString(name) for name in packages))

    def process(self, output: Sequence[str]) -> dict[str, str | None]:
        """Read the paragraphs."""
        return parse_policy(output)


class Listeners(FactBase[list[str]]):
    """The local addresses on which a TCP port is listened to, awaited for some seconds."""

    default = list

    def command(self, port: int) -> StringCommand:
        """The port's lines of ``ss``, once there are any."""
        listing = f"ss -Hltn 'sport = :{int(port)}'"
        wait = f'i=0; while [ $i -lt {_PATIENCE} ] && [ -z "$({listing})" ]; do i=$((i + 1)); sleep 0.1; done'
        return StringCommand(f"{wait}; {listing}")

    def process(self, output: Sequence[str]) -> list[str]:
        """Addresses without their port."""
        return parse_listeners(output)


def parse_policy(output: Sequence[str]) -> dict[str, str | None]:
    """The candidate of each package in ``apt-cache policy NAME…``; None where there is none."""
    found: dict[str, str | None] = {}
    name = ""
    for line in output:
        if line and not line[0].isspace():
            name = line.rstrip(":")
            found[name] = None
        elif line.strip().startswith("Candidate:"):
            candidate = line.split(":", 1)[1].strip()
            found[name] = None if candidate == "(none)" else candidate
    return found


def parse_listeners(output: Sequence[str]) -> list[str]:
    """The local addresses in ``ss -Hltn``, which has them in its fourth column, sorted."""
    columns = [line.split() for line in output]
    return sorted({words[3].rpartition(":")[0].strip("[]") for words in columns if len(words) > 3})
