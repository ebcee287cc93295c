"""The way to an API server: what is waited for, what is final, and in which words."""

from collections.abc import Iterator

import pytest
from fake_api import FakeApi, serving

from relic import kube
from relic.kube import Api
from relic.verdict import Unreachable

PODS = "/api/v1/namespaces/relic/pods"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    fake = FakeApi()
    fake.put(f"{PODS}/one")
    monkeypatch.setattr(kube, "PAUSE_S", 0.01)
    with serving(fake) as client:
        monkeypatch.setattr(kube, "connect", lambda: client)
        yield fake


def test_what_is_there_is_plain_values_and_what_is_not_is_none(fake: FakeApi) -> None:
    api = Api("relic")
    assert api.get("pods", "one") == fake.objects[f"{PODS}/one"]
    assert api.get("pods", "two") is None
    assert [pod["metadata"]["name"] for pod in api.items("pods")] == ["one"]


def test_a_server_that_is_away_is_waited_for_as_long_as_patience_lasts(fake: FakeApi) -> None:
    fake.failing = [500, 0, 429, 503]
    assert Api("relic").get("pods", "one")
    fake.failing = 1000 * [503]
    with pytest.raises(Unreachable, match=r"the API server does not answer \(the server is starting\)"):
        Api("relic", patience=lambda: 0.05).get("pods", "one")


@pytest.mark.parametrize("status", kube.DENIED)
def test_a_refusal_passes_for_a_run_that_was_granted_something(fake: FakeApi, status: int) -> None:
    api = Api("relic", in_run=True)
    fake.failing = [status]
    with pytest.raises(kube.Refused):
        api.get("pods", "one")
    api.get("pods", "one")
    fake.failing = [status]
    assert api.get("pods", "one")


def test_a_refusal_is_final_for_a_person(fake: FakeApi) -> None:
    api = Api("relic")
    api.get("pods", "one")
    fake.failing = [403]
    with pytest.raises(kube.Refused, match=r"^the cluster refuses this: the server is starting$") as refused:
        api.get("pods", "one")
    assert refused.value.status == 403


def test_only_a_missing_right_is_the_charts(fake: FakeApi) -> None:
    fake.forbidden = {("list", "pods")}
    with pytest.raises(kube.Refused, match="cannot list; charts/relic-platform gives the accounts of a run"):
        Api("relic", in_run=True).items("pods")
    fake.failing = [403]  # as a quota does
    with pytest.raises(kube.Refused, match=r"the server is starting$"):
        Api("relic", in_run=True).items("pods")


def test_a_request_that_must_not_be_made_twice_is_tried_once(fake: FakeApi) -> None:
    fake.failing = [0]
    with pytest.raises(Unreachable, match="does not answer"):
        Api("relic").ask("POST", PODS, {"metadata": {"generateName": "a-"}}, patience_s=0)
    assert list(fake.objects) == [f"{PODS}/one"]


def test_a_log_is_text_or_lines_even_where_it_could_be_json(fake: FakeApi) -> None:
    fake.logs["one"] = "12\nzwölf"
    api = Api("relic")
    assert api.ask("GET", api.place("pods", "one", "log"), text=True) == "12\nzwölf"
    assert list(api.lines(api.place("pods", "one", "log"), follow="true")) == ["12", "zwölf"]
