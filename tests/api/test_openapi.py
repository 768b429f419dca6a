"""The document that describes the API is valid, and true."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator

from .harness import Service

pytestmark = pytest.mark.model


def test_the_document_is_valid(service: Service) -> None:
    answer = service.client(None).get("/openapi.json")
    assert answer.status_code == 200
    document = answer.json()
    assert document["openapi"].startswith("3.")
    assert {"/transcribe", "/transcribe/url", "/healthz", "/readyz", "/health"} <= set(document["paths"])
    _resolve(document, document)
    posted = document["paths"]["/transcribe"]["post"]
    assert {"200", "400", "401", "403", "413", "415", "422", "429", "503", "507"} <= set(posted["responses"])
    assert "multipart/form-data" in posted["requestBody"]["content"]
    operations = [entry["operationId"] for path in document["paths"].values() for entry in path.values()]
    assert len(set(operations)) == len(operations)


def test_every_answer_has_an_example_that_is_one(service: Service) -> None:
    document = service.client(None).get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = [(status, answer.get("content", {})) for status, answer in operation["responses"].items()]
            answers.append(("request", operation.get("requestBody", {}).get("content", {})))
            shown = [status for status, contents in answers if contents and status.startswith("2")]
            assert shown or "204" in operation["responses"], f"{method} {path} shows no answer"
            for status, contents in answers:
                for kind, content in contents.items():
                    if kind == "multipart/form-data":
                        continue  # /docs shows a form to fill in
                    place = f"{method} {path} {status} {kind}"
                    assert "example" in content, place
                    if kind.endswith("json"):
                        problems = [
                            error.message
                            for error in Draft202012Validator(content.get("schema", {})).iter_errors(content["example"])
                        ]
                        assert problems == [], place


def test_it_says_how_to_authenticate(service: Service) -> None:
    document = service.client(None).get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"].values()
    assert {(scheme["type"], scheme.get("scheme"), scheme.get("name")) for scheme in schemes} >= {
        ("apiKey", None, "X-API-Key"),
        ("http", "bearer", None),
    }
    assert document["paths"]["/transcribe"]["post"].get("security") or document.get("security")


def test_the_page_needs_nothing_from_outside(service: Service) -> None:
    """Where the service runs there may be no way out, and no script of strangers has business beside API keys."""
    page = service.client(None).get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text


def _resolve(node: object, document: dict[str, object]) -> None:
    """Every reference leads somewhere."""
    if isinstance(node, list):
        for item in node:
            _resolve(item, document)
    elif isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            found: object = document
            for part in reference.removeprefix("#/").split("/"):
                assert isinstance(found, dict), reference
                found = found[part]
        for value in node.values():
            _resolve(value, document)
