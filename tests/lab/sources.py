"""Where this machine gets Debian from: its own apt sources and options, for building another root file system."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

CARRIED_OPTIONS = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries")
"""Options without which a machine behind a proxy or with a frozen mirror could not download anything."""


def deb822_for(text: str, suite: str) -> str:
    """The stanzas of a ``.sources`` file that have ``suite`` of Debian's main archive, reduced to its suites (sources.list(5))."""
    stanzas = []
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text):
        lines = [line for line in paragraph.splitlines() if line and not line.startswith("#")]
        fields = _fields(lines)
        suites = _suites(fields.get("suites", "").split(), suite)
        if (
            "deb" not in fields.get("types", "").split()
            or fields.get("enabled", "yes").lower() in {"no", "false", "0", "off", "without", "disable"}
            or "main" not in fields.get("components", "").split()
            or not suites
        ):
            continue
        kept = _without(lines, {"types", "suites", "enabled"})
        stanzas.append("\n".join(["Types: deb", f"Suites: {' '.join(suites)}", *kept]) + "\n")
    return "\n".join(stanzas)


def one_line_for(text: str, suite: str) -> str:
    """The lines of a ``.list`` file that have ``suite`` of Debian's main archive."""
    form = re.compile(r"\s*deb\s+(?:\[[^\]]*\]\s+)?\S+\s+(?P<suite>\S+)\s+(?P<components>[^#]*)")
    kept = [
        line
        for line in text.splitlines()
        if (found := form.match(line)) and _suites([found["suite"]], suite) and "main" in found["components"].split()
    ]
    return "".join(f"{line}\n" for line in kept)


def sources_for(suite: str, folder: Path = Path("/etc/apt")) -> list[str]:
    """This machine's sources of ``suite``, each a text as apt reads it; none if it is a machine of another release."""
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    texts = []
    for file in files:
        if file.is_file() and file.suffix in {".list", ".sources"}:
            select = deb822_for if file.suffix == ".sources" else one_line_for
            texts.append(select(file.read_text(encoding="utf-8"), suite))
    return [text for text in texts if text]


def carried_options(dump: str) -> list[str]:
    """What ``apt-config dump Acquire`` says of proxies, certificates and frozen mirrors, as lines of an apt.conf."""
    return [line for line in dump.splitlines() if line.startswith(CARRIED_OPTIONS) and not line.endswith(' "";')]


def packages_index(control: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """A repository's Packages file from each package's control fields and what apt needs besides (Filename, Size, SHA256)."""
    return "\n".join(
        text.rstrip("\n") + "\n" + "".join(f"{n}: {v}\n" for n, v in more.items()) for text, more in control
    )


def _suites(named: Iterable[str], suite: str) -> list[str]:
    ours = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    return [name for name in named if name in ours]


def _fields(lines: Iterable[str]) -> dict[str, str]:
    """A stanza's fields by lower-case name; continuation lines belong to the field above them."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line[0].isspace():
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
        elif name:
            fields[name] += f" {line.strip()}"
    return fields


def _without(lines: Iterable[str], names: set[str]) -> Iterator[str]:
    dropped = False
    for line in lines:
        if not line[0].isspace():
            dropped = line.partition(":")[0].strip().lower() in names
        if not dropped:
            yield line
