"""What apt would install: the candidate versions of NVIDIA's packages, read from ``apt-cache show``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

NAMES: Final = (
    "nvidia-(open-)?kernel-dkms|libcuda1|libnvidia-ml1|nvidia-smi|nvidia-persistenced|nvidia-modprobe"
    "|linux-headers-([0-9.]+-)?(cloud-)?amd64"
    "|nvidia-headless-no-dkms-[0-9]+-server(-open)?|linux-modules-nvidia-[0-9]+-server(-open)?-[a-z].*"
    "|nvidia-utils-[0-9]+-server|nvidia-fabricmanager-[0-9]+"
)
"""Names of the packages that a plan decides by, as an extended regular expression: Debian's, then Ubuntu's."""

COMMAND: Final = (
    f"export LC_ALL=C; apt-cache show --no-all-versions $(apt-cache pkgnames | grep -xE '{NAMES}') "
    "linux-headers-$(uname -r) 2>/dev/null | grep -E '^(Package|Version|Depends|Description(-en)?):|^$' || true"
)
"""The candidates' stanzas, cut to what is read of them; names that are known, but cannot be installed, have none. The running
kernel's own headers are among them, as long as the archive has that kernel."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The version of a package that apt would install."""

    name: str
    version: str
    depends: tuple[str, ...] = ()
    """Names of the packages that it depends on, without versions; alternatives count as one each."""

    summary: str = ""

    @property
    def upstream(self) -> str:
        """NVIDIA's own version of a driver package: ``535.309.01`` of ``535.309.01-0+deb12u1``."""
        return re.sub(r"^\d+:", "", self.version).partition("-")[0]

    @property
    def branch(self) -> int:
        """The driver branch: ``535`` of ``535.309.01-0+deb12u1``."""
        return int(re.match(r"\d+", self.upstream)[0])  # type: ignore[index]  # Debian's versions begin with a digit

    @property
    def transitional(self) -> bool:
        """Whether there is nothing in it but a dependency on the same package of another branch."""
        stem = _without_branch(self.name)
        return "transitional" in self.summary.lower() or any(
            other != self.name and _without_branch(other) == stem for other in self.depends
        )


def parse_candidates(lines: Iterable[str]) -> Mapping[str, Candidate]:
    """What ``apt-cache show`` printed: name → candidate. Stanzas without a version are left out."""
    stanzas: list[dict[str, str]] = [{}]
    for line in lines:
        field, colon, value = line.partition(":")
        if not line.strip():
            stanzas.append({})
        elif colon and not line[0].isspace():
            stanzas[-1].setdefault(field.removesuffix("-en"), value.strip())
    return {
        stanza["Package"]: Candidate(
            stanza["Package"], stanza["Version"], _names(stanza.get("Depends", "")), stanza.get("Description", "")
        )
        for stanza in stanzas
        if {"Package", "Version"} <= stanza.keys()
    }


def _names(depends: str) -> tuple[str, ...]:
    """Package names of a Depends field: ``a (= 1), b | c`` → a, b, c."""
    parts = re.split(r"[,|]", depends)
    return tuple(name for part in parts if (name := re.split(r"[\s(:]", part.strip(), maxsplit=1)[0]))


def _without_branch(name: str) -> str:
    """The name with the driver branch left out: ``nvidia-utils-580-server`` → ``nvidia-utils-*-server``."""
    return re.sub(r"-\d{3}(?=-|$)", "-*", name, count=1)
