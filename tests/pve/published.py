"""Names from Proxmox' own description of its API, for the calls that the simulator answers.

``published.json`` has them: method, path, parameter names, and the names in the answer's ``data``. It was made by this module from the
crate clientapi-pve 2026.5.24 (Apache 2.0), which is generated from Proxmox VE 9's ``apidoc.js``::

    python -m pve.published CRATE > published.json     # CRATE: where cargo unpacked it

Names with a number are given once: ``net[n]``.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FILE: Final = Path(__file__).with_name("published.json")

# What the provider calls of it; the rest of the API is none of the simulator's business.
_SERVED: Final = re.compile(
    r"/(version|nodes|pools|cluster/(nextid|resources|mapping/pci(/\{id\})?)"
    r"|nodes/\{node\}/(hardware/pci|query-url-metadata|qemu|tasks/\{upid\}(/status|/log)?"
    r"|storage/\{storage\}/(download-url|content(/\{volume\})?)"
    r"|qemu/\{vmid\}(/(config|cloudinit|resize|status/(current|start|stop|shutdown|reboot)|agent/(ping|network-get-interfaces)))?))"
)


@dataclass(frozen=True)
class Call:
    """A method of the API.

    Attributes:
        parameters: names, those in the path left out.
        answer: names in ``data``, of its entries where it is a list; None where it has none.
    """

    method: str
    path: str
    parameters: frozenset[str]
    answer: frozenset[str] | None

    def matches(self, method: str, path: str) -> bool:
        """Whether a request is one of these."""
        pattern = re.sub(r"\{volume\}", ".+", re.sub(r"\{(?!volume)\w+\}", "[^/]+", self.path))
        return method == self.method and re.fullmatch(pattern, path.rstrip("/")) is not None


def calls() -> list[Call]:
    """All of them."""
    return [
        Call(
            one["method"],
            one["path"],
            frozenset(one["parameters"]),
            frozenset(one["answer"]) if one["answer"] else None,
        )
        for one in json.loads(_FILE.read_text(encoding="utf-8"))
    ]


def general(name: str) -> str:
    """A name as it is published: ``net0`` is ``net[n]``."""
    return re.sub(r"^(net|scsi|virtio|sata|ide|hostpci|serial|ipconfig|usb|numa|parallel|unused)\d+$", r"\1[n]", name)


def _extracted(crate: Path) -> list[dict[str, object]]:
    found = []
    for source in sorted((crate / "src" / "apis").glob("*_api.rs")):
        for function in re.split(r"(?m)^pub async fn ", source.read_text(encoding="utf-8"))[1:]:
            path = re.search(r'uri_str = format!\("\{\}([^"]+)"', function)
            method = re.search(r"reqwest::Method::(\w+)", function)
            if path is None or method is None or not _SERVED.fullmatch(path[1]):
                continue
            names = set(re.findall(r'\.query\(&\[\("([^"]+)"', function))
            if body := re.search(r"_request: (?:Option<)?models::(\w+Request)", function):
                names |= _fields(crate, body[1])
            answer = re.search(r"Result<models::(\w+Response)", function)
            found.append(
                {
                    "method": method[1],
                    "path": path[1],
                    "parameters": sorted(names),
                    "answer": sorted(_answer(crate, answer[1])) if answer else [],
                }
            )
    return sorted(found, key=lambda call: (str(call["path"]), str(call["method"])))


def _model(crate: Path, name: str) -> str:
    file = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return (crate / "src" / "models" / f"{file}.rs").read_text(encoding="utf-8")


def _fields(crate: Path, name: str) -> set[str]:
    text = _model(crate, name)
    plain = set(re.findall(r'#\[serde\(rename = "([^"]+)"', text)) | set(re.findall(r'map\.insert\("([^"]+)"', text))
    return plain | {f"{family}[n]" for family in re.findall(r'map\.insert\(format!\("([a-z]+)\{\}"', text)}


def _answer(crate: Path, name: str) -> set[str]:
    inner = re.search(r"pub data: (?:Option<)?(?:Box|Vec)<models::(\w+)>", _model(crate, name))
    return _fields(crate, inner[1]) if inner else set()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_extracted(Path(sys.argv[1])), indent=1) + "\n")
