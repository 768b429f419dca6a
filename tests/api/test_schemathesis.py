"""Schemathesis over the whole OpenAPI document: whatever is sent, no answer is a 5xx, or one that the document does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .harness import KEY, Start

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

# What the schema calls a recording need not be one, and what it calls a model need not be served: 4xx are in order.
# And a job that is deleted while it runs is cancelled, and stays to be seen.
NOT_MEANT = "positive_data_acceptance,use_after_free"

# The one has no end; the other is to say 503 while a model is loaded, as it is in the middle of this.
NOT_ASKED = ("/model/events", "/readyz")


@pytest.mark.parametrize(
    ("key", "phases"),
    [(KEY, "examples,coverage,fuzzing,stateful"), (None, "examples,fuzzing")],
    ids=["key", "nobody"],
)
def test_every_answer_is_in_the_document(start: Start, tmp_path: Path, key: str | None, phases: str) -> None:
    service = start()
    command = (
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
        *(("--header", f"X-API-Key: {key}") if key else ()),
        *("--phases", phases, "--exclude-checks", NOT_MEANT),
        *(word for path in NOT_ASKED for word in ("--exclude-path", path)),
        *("--max-examples", "5", "--generation-database", "none", "--request-timeout", "60", "--no-color"),
    )
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout
    assert "Tested: " in done.stdout
    assert not [line for line in service.log() if line.get("level") in {"error", "critical"}]
    answers = [line["status"] for line in service.log() if line.get("event") == "request"]
    assert len(answers) > 50
    assert {status for status in answers if status >= 500} == set()
