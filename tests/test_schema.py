"""openapi.json against the server: schemathesis asks all that the document allows, and much that it does not."""

import json
import time
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from fake_world import FakeWorld, Place, serving
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as openapi

from relic.serve import schema
from relic.serve.access import Refused
from relic.serve.config import Serve

CHECKS = [
    openapi.status_code_conformance, openapi.content_type_conformance, openapi.response_schema_conformance,
    openapi.response_headers_conformance, openapi.unsupported_method,
]  # fmt: skip
OPERATIONS = [
    "POST /v1/sessions", "GET /v1/sessions/{identity}", "DELETE /v1/sessions/{identity}",
    "POST /v1/sessions/{identity}/branch", "POST /v1/sessions/{identity}/move", "GET /v1/replica", "GET /v1/world",
    "GET /v1/examples/{name}", "GET /healthz", "GET /readyz", "GET /metrics",
]  # fmt: skip
KEY = "correct-horse-battery"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving(FakeWorld(), {KEY: "ann"}, slots=4, sessions_each=4, creates_per_minute=1e6) as found:
        yield found


def begun(place: Place) -> str:
    """A session, where there is a place; others make room."""
    for session in list(place.server.scheduler.sessions.values()):
        httpx.delete(f"{place}/v1/sessions/{session.id}", headers=HEADERS)
    return httpx.post(f"{place}/v1/sessions", json={"example": "e0"}, headers=HEADERS).json()["id"]


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_as_the_document_says(label, place):
    document = schemathesis.openapi.from_url(f"{place}/openapi.json")
    (operation,) = (found for each in document.get_all_operations() if (found := each.ok()).label == label)

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def walk(case: schemathesis.Case) -> None:
        ask(case)
        case.headers["Authorization"] = f"Bearer {KEY}"
        ask(case)
        if "identity" in case.path_parameters:
            case.path_parameters["identity"] = begun(place)
            ask(case)
        if isinstance(case.body, dict):
            begun(place)
            case.body = {name: said for name, said in case.body.items() if name != "image"} | {"example": "e0"}
            ask(case)

    walk()


def test_every_operation_is_asked(place):
    paths = httpx.get(f"{place}/openapi.json").json()["paths"]
    assert sorted(f"{method.upper()} {path}" for path, said in paths.items() for method in said) == sorted(OPERATIONS)


def test_every_refusal_is_one_sentence_and_every_operation_says_what_it_does(place):
    document = httpx.get(f"{place}/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
            for status, said in operation["responses"].items():
                if int(status) >= 400 and path not in ("/healthz", "/readyz"):
                    assert said["content"]["application/json"]["schema"]["$ref"].endswith("/Failure")
    assert set(document["components"]["securitySchemes"]) == {"key", "token", "router"}


@pytest.mark.parametrize(
    "body", ["[" * 2000, '{"a":' * 500, "nul", '"\ud800"', '{"seed": 1e999}', '{"seed": %s}' % ("9" * 9000)]
)
def test_a_body_that_hurts_is_a_sentence(place, body):
    data = body.encode("utf-8", "surrogatepass")
    answer = httpx.post(f"{place}/v1/sessions", content=data, headers={"content-type": "application/json", **HEADERS})
    assert answer.status_code == 422
    assert len(json.loads(answer.content)["error"]) < 400


def test_a_body_of_a_million_keys_is_refused_unread():
    body = json.dumps(dict.fromkeys(map(str, range(1_000_000)))).encode()
    before = time.process_time()
    with pytest.raises(Refused, match="bytes that are not of base64; allowed are 2624") as error:
        schema.parse(body, Serve(run="fake"))
    assert error.value.status == 413
    assert time.process_time() - before < 0.5


def test_a_prompt_of_any_letters_is_read():
    asked = json.dumps({"example": "e0", "prompt": "\U0001f600" * 400}, ensure_ascii=False, indent=2).encode()
    assert schema.parse(asked, Serve(run="fake")).prompt == "\U0001f600" * 400


def ask(case: schemathesis.Case) -> None:
    answer = case.call()
    assert answer.status_code < 500 or answer.status_code == 503
    case.validate_response(answer, checks=CHECKS)
