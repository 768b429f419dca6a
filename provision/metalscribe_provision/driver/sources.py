"""Components of the distribution's archive that NVIDIA's packages are in, added without touching the operator's files.

The operator's entries, in either of apt's formats (sources.list(5): one-line ``.list`` and deb822 ``.sources``), are read;
a file of our own repeats those of the distribution's archive — same URIs, suites, key and options — with the components
that are missing, and with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

OWN_FILE: Final = "/etc/apt/sources.list.d/metalscribe-nvidia.sources"

COMPONENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "debian": ("contrib", "non-free", "non-free-firmware"),
    "ubuntu": ("restricted", "multiverse"),
}
"""Distribution → the components: Debian has the open modules and nvidia-modprobe in contrib, the GPU's firmware in
non-free-firmware and the rest in non-free; Ubuntu has nvidia-modprobe and nvidia-fabricmanager in multiverse."""

COMMAND: Final = (
    "for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do "
    '[ ! -r "$file" ] || { echo "==> $file <=="; cat "$file"; echo; }; done'
)

_POCKETS: Final = ("", "-updates", "-security")
"""Suites that packages come from unasked; backports and proposed updates do not."""

_HEADER: Final = "# Written by metalscribe's driver deploy: what the other sources leave out of NVIDIA's driver."


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of binary packages: every URI × suite × component that it names."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    """The other fields by their deb822 names, such as Signed-By; an embedded key keeps its lines."""


def parse_sources(lines: Iterable[str]) -> list[Source]:
    """What ``COMMAND`` printed, without our own file and without entries that are switched off."""
    files: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        if header := re.fullmatch(r"==> (/\S+) <==", line.strip()):
            current = files.setdefault(header[1], [])
        else:
            current.append(line)
    return [
        source
        for path, content in files.items()
        if path != OWN_FILE
        for source in (_deb822(content) if path.endswith(".sources") else _one_line(content))
    ]


def missing_components(sources: Iterable[Source], distribution: str, codename: str) -> list[Source]:
    """The entries that have to be added for all of the distribution's components; empty if nothing is missing.

    Raises:
        ValueError: no entry is of the distribution's archive, so there is nothing to add them to.
    """
    sources = list(sources)
    suites = {codename + pocket for pocket in _POCKETS}
    archive = [source for source in sources if "main" in source.components and suites & set(source.suites)]
    if not archive:
        raise ValueError(f"no apt source on this host has component main of {codename}; add the distribution's archive")
    enabled = {
        (uri.rstrip("/"), suite, component)
        for source in sources
        for uri in source.uris
        for suite in source.suites
        for component in source.components
    }
    added: dict[tuple[str, str], Source] = {}
    for source in archive:
        for uri in source.uris:
            for suite in source.suites:
                components = tuple(
                    component
                    for component in COMPONENTS[distribution]
                    if (uri.rstrip("/"), suite, component) not in enabled
                )
                if suite in suites and components:
                    added.setdefault((uri.rstrip("/"), suite), Source((uri,), (suite,), components, source.options))
    return list(added.values())


def render_sources(sources: Iterable[Source]) -> str:
    """The text of our own file (deb822), entries that differ in their suites alone as one."""
    merged: dict[tuple[tuple[str, ...], ...], Source] = {}
    for source in sources:
        key = (source.uris, source.components, *source.options.items())
        before = merged.get(key)
        merged[key] = replace(source, suites=(*before.suites, *source.suites)) if before else source
    stanzas = []
    for source in merged.values():
        fields = {"Types": "deb", "URIs": " ".join(source.uris), "Suites": " ".join(source.suites)}
        fields |= {"Components": " ".join(source.components), **source.options}
        stanzas.append("".join(f"{name}: {value}\n" for name, value in fields.items()))
    return f"{_HEADER}\n\n" + "\n".join(stanzas)


def has_password(text: str) -> bool:
    """Whether a URI of the text carries a user's name or password."""
    return re.search(r"^URIs:.*://[^/\s]*@", text, re.MULTILINE) is not None


def _one_line(lines: Iterable[str]) -> list[Source]:
    """Entries such as ``deb [signed-by=/usr/share/keyrings/x.gpg] https://host/debian bookworm main contrib``."""
    sources = []
    for line in lines:
        entry = line.partition("#")[0]
        found = re.fullmatch(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*?)\s*", entry)
        if found and not found[2].startswith("cdrom:"):
            options = dict(map(_option, re.findall(r"\S+=\S+", found[1] or "")))
            sources.append(Source((found[2],), (found[3],), tuple(found[4].split()), options))
    return sources


def _option(text: str) -> tuple[str, str]:
    """``signed-by=/a,/b`` → ``Signed-By``, ``/a /b``; ``arch-=i386`` → ``Architectures-Remove``, ``i386``."""
    name, _, value = text.partition("=")
    suffix = {"+": "-Add", "-": "-Remove"}.get(name[-1:], "")
    stem = name.rstrip("+-")
    deb822 = {"arch": "Architectures", "lang": "Languages", "target": "Targets", "pdiffs": "PDiffs"}.get(
        stem, stem.title()
    )
    return deb822.replace("Inrelease", "InRelease") + suffix, value.replace(",", " ")


def _deb822(lines: Iterable[str]) -> list[Source]:
    """Stanzas of ``Field: value`` lines; a field goes on in lines that begin with white space."""
    sources = []
    stanza: dict[str, str] = {}
    last = ""
    for line in [*lines, ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            sources += _stanza(stanza)
            stanza, last = {}, ""
        elif line[0].isspace():
            if last:
                stanza[last] += "\n" + line.rstrip()
        else:
            name, _, value = line.partition(":")
            last = _FIELDS.get(name.strip().lower(), name.strip())
            stanza[last] = value.strip()
    return sources


_FIELDS: Final = {name.lower(): name for name in ("Types", "URIs", "Suites", "Components", "Enabled")}
"""Field names are read whatever their case."""


def _stanza(stanza: Mapping[str, str]) -> list[Source]:
    if "deb" not in stanza.get("Types", "").split() or stanza.get("Enabled", "yes").lower() in {
        "no",
        "false",
        "off",
        "0",
    }:
        return []
    known = {*_FIELDS.values(), "X-Repolib-Name"}
    return [
        Source(
            tuple(stanza.get("URIs", "").split()),
            tuple(stanza.get("Suites", "").split()),
            tuple(stanza.get("Components", "").split()),
            {name: value for name, value in stanza.items() if name not in known},
        )
    ]
