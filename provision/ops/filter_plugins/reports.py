"""Jinja filters of the playbooks: a host's name, what programs reported, and the table of all hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

_HEADING: Final = ("HOST", "RELEASE", "UNIT", "HEALTH", "MODEL", "DEVICE", "CERT", "DISK", "DOCTOR")

_OUTCOMES: Final[Mapping[Any, str]] = {
    1: "it failed; what served before serves",
    2: "it was refused; nothing was changed",
    3: "it failed, and the host does NOT serve",
}
"""What the exit statuses of ``metalscribe-release`` mean."""


class FilterModule:
    """Tells Ansible the filters' names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {
            "certificate": certificate,
            "certified_name": certified_name,
            "current_release": current_release,
            "deploy_changes": deploy_changes,
            "deploy_problem": deploy_problem,
            "findings": findings,
            "release_problem": release_problem,
            "status_report": status_report,
        }


def certificate(result: Mapping[str, Any]) -> str:
    """Serial number and end of the certificate that ``probe.py`` has seen."""
    answer = _document(result) or {}
    return f"{answer['serial']} until {answer['not_after']}" if answer.get("serial") else "none"


def certified_name(given: str | Sequence[str], known: Sequence[str], tls: str) -> str:
    """The name that a host's certificate is for and that nginx answers to, as the deploy chooses it.

    Args:
        given: ``server_names``, a list or words separated by commas or blanks; may be empty.
        known: what else the host is called, its address first. An ACME server certifies public DNS names only.
        tls: where the certificate comes from.
    """
    names = re.findall(r"[^,\s]+", given) if isinstance(given, str) else list(given)
    if not names and tls == "acme":
        names = [name for name in known if "." in name and re.search(r"[A-Za-z]", name) and ":" not in name]
    return names[0] if names else known[0]


def current_release(result: Mapping[str, Any]) -> str:
    """The id of the release that ``metalscribe-release status --json`` calls current; "none" on a host without one."""
    return (_document(result) or {}).get("current") or "none"


def deploy_changes(result: Mapping[str, Any]) -> list[str]:
    """Names of the operations that changed the host in a run of ``pyinfra --json``, or that would with ``--dry``."""
    report = _document(result)
    if report is None:
        return []
    if report["results"] is None:
        return [operation["name"] for operation in report["plan"] if operation["hosts_with_change"]]
    return [operation["name"] for operation in report["results"]["operations"] if operation["success"]]


def deploy_problem(result: Mapping[str, Any]) -> str:
    """What is wrong with a run of ``pyinfra --json`` for one host; nothing at all is an empty text.

    pyinfra is content with a host that its inventory does not have: it does nothing and exits 0.
    """
    if result.get("rc") != 0:
        begun = re.findall(r"--> Starting operation: (.*\S)", result.get("stderr") or "")
        where = f"in its operation {begun[-1]!r}" if begun else "before its first operation"
        return f"the deploy failed {where}; all that it said is above"
    report = _document(result)
    if report is None:
        return "pyinfra printed no report"
    if not report["plan"]:
        return "the deploy did nothing: pyinfra does not find this host in the inventory"
    return ""


def findings(result: Mapping[str, Any], *statuses: str) -> list[str]:
    """What ``metalscribe doctor --json`` found, one line for each check that has one of the statuses (warn, fail).

    A doctor that does not even run is a finding whatever the statuses.
    """
    report = _document(result)
    if report is None:
        return [f"metalscribe doctor does not run on this host: {_said(result)}"]
    return [
        f"{check['name']}: {check['detail']}" + (f" ({check['hint']})" if check.get("hint") else "")
        for check in report["checks"]
        if check["status"] in statuses
    ]


def release_problem(result: Mapping[str, Any]) -> str:
    """What is wrong with a run of ``metalscribe-release --json`` that changes something; nothing at all is an empty text."""
    if result.get("rc") == 0:
        return ""
    report = _document(result)
    if report is None:
        return f"metalscribe-release does not run on this host: {_said(result)}"
    return f"{_OUTCOMES.get(result.get('rc'), 'it failed')}: {report.get('detail')}"


def status_report(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table with a line for each host, and under it what is wrong or may become so.

    Args:
        hosts: variables of each host, with the registered results that ``status.yml`` makes: ``asked`` (of ``probe.py``),
            ``unit``, ``releases``, ``diagnosis``; those of a host that could not be reached have no output.
    """
    rows = [_HEADING, *(_row(host) for host in hosts)]
    notes = [f"{host['inventory_hostname']}: {note}" for host in hosts for note in _notes(host)]
    return [*table(rows), *notes]


def table(rows: Sequence[Sequence[Any]]) -> list[str]:
    """``rows`` as lines with aligned columns, two blanks between them; what is empty or None is a hyphen."""
    cells = [["-" if cell is None or cell == "" else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _row(host: Mapping[str, Any]) -> tuple[Any, ...]:
    answer = _document(host["asked"]) or {}
    health = _document({"stdout": answer.get("body")}) or {}
    days = answer.get("days_left")
    certificate = None if days is None else f"{days} d" + ("" if answer["verified"] else " !")
    checks = (_document(host["diagnosis"]) or {}).get("checks", [])
    disk = next((check["detail"] for check in checks if check["name"] == "disk_space"), "")
    return (
        host["inventory_hostname"],
        (_document(host["releases"]) or {}).get("current"),
        host["unit"].get("stdout", "").strip(),
        health.get("status"),
        health.get("model"),
        health.get("device"),
        certificate,
        disk.partition(" free")[0],
        (_document(host["diagnosis"]) or {}).get("status"),
    )


def _notes(host: Mapping[str, Any]) -> Iterator[str]:
    if host["unit"].get("unreachable"):
        yield f"cannot be reached over SSH: {_said(host['unit'])}"
    else:
        yield from findings(host["diagnosis"], "warn", "fail")
        yield from _release_notes(_document(host["releases"]) or {})
    if host["asked"].get("rc") != 0:
        yield _said({**host["asked"], "stdout": ""})


def _release_notes(status: Mapping[str, Any]) -> Iterator[str]:
    """What ``metalscribe-release status --json`` wants attention for."""
    for name, meaning in (
        ("interrupted", "a switch of the release was cut off midway: run the deploy again"),
        ("reload_needed", "the unit's file has changed since systemd read it: run the deploy again"),
        ("credentials_changed", "a credential has changed since the start: run restart.yml"),
    ):
        if status.get(name):
            yield meaning
    if failed := status.get("failed"):
        yield f"release {failed['release']} failed at {failed['at']} ({failed['step']}): {failed['reason']}"


def _document(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON object that a command printed, None if it printed none."""
    try:
        document = json.loads(result.get("stdout") or "")
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _said(result: Mapping[str, Any]) -> str:
    """The command's own words, as far as there are any."""
    said = (result.get("stderr"), result.get("stdout"), result.get("msg"))
    return next((str(text).strip() for text in said if text and str(text).strip()), "nothing was said")
