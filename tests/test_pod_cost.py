"""What a router writes on pods, by a stand-in for the cluster's API server."""

import asyncio
import json
import ssl
from pathlib import Path

import httpx
import pytest

from relic.serve.pod_cost import ANNOTATION, EVERY_S, HOST, PORT, PodCosts


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {"token": "t0ken\n", "namespace": "worlds\n", "ca.crt": ""}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv(HOST, "10.0.0.1")
    monkeypatch.setenv(PORT, "443")
    monkeypatch.setattr(ssl, "create_default_context", lambda cafile: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return tmp_path


def test_a_cost_is_written_when_it_changed_and_not_too_often(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    transport = httpx.MockTransport(answer)
    costs, now = PodCosts(account, transport), [1000.0]
    monkeypatch.setattr("relic.serve.pod_cost.time.monotonic", lambda: now[0])
    for later, said in [
        (0, {"a": 2, "b": 0}),
        (1, {"a": 3, "b": 1}),
        (EVERY_S, {"a": 3, "b": 1}),
        (99, {"a": 3, "b": 1}),
    ]:
        now[0] += later
        asyncio.run(costs.write(said))
    written = [(request.url.path[-1], json.loads(request.content)["metadata"]["annotations"]) for request in asked]
    assert written == [("a", {ANNOTATION: "2"}), ("b", {ANNOTATION: "1"}), ("a", {ANNOTATION: "3"})]
    assert str(asked[0].url) == "https://10.0.0.1/api/v1/namespaces/worlds/pods/a"
    assert asked[0].headers["authorization"] == "Bearer t0ken"
    assert asked[0].headers["content-type"] == "application/merge-patch+json"


def test_a_cluster_that_refuses_stops_no_router(account: Path, caplog: pytest.LogCaptureFixture) -> None:
    costs = PodCosts(account, httpx.MockTransport(lambda request: httpx.Response(403)))
    asyncio.run(costs.write({"a": 2}))
    assert "the cost of pod a is answered by 403" in caplog.text


def test_outside_of_a_cluster_it_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOST, raising=False)
    with pytest.raises(ValueError, match="deletion_cost is given outside of a cluster's pod"):
        PodCosts(tmp_path)
