"""Handing in jobs and waiting for them, for the tests that do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from .harness import Service, wait_for


def submit(client: httpx.Client, content: bytes, name: str = "sample.flac", **options: Any) -> str:
    """Hand a recording in; returns the job's id."""
    answer = client.post("/jobs", files={"audio": (name, content)}, data=options)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["job_id"]
    assert answer.headers["location"] == f"/jobs/{job_id}"
    return job_id


def job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    answer = client.get(f"/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def ended(client: httpx.Client, job_id: str, timeout: float = 120.0) -> dict[str, Any]:
    """Wait until a job has ended."""

    def look() -> dict[str, Any] | None:
        found = job(client, job_id)
        return found if found["status"] in {"done", "failed", "cancelled"} else None

    document: dict[str, Any] = wait_for(look, f"job {job_id} to end", timeout)
    return document


def told(answer: httpx.Response) -> list[tuple[str | None, str, dict[str, Any]]]:
    """Id, name and data of an answer's events, comments left out."""
    found = []
    for block in answer.read().decode().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def recordings(service: Service) -> list[Path]:
    """Every file of the jobs that the service keeps on disk."""
    found = (service.state_dir / "jobs").rglob("*")
    return sorted(path for path in found if path.is_file() and path.name != ".lock")
