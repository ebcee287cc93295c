"""What is counted, seen as Prometheus sees it."""

import re
from pathlib import Path

import httpx
from fake_world import FakeWorld, Place, serving
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from talk import closing, follow, hear, see
from test_api import post
from test_session import row, walk

from relic.serve.access import Refused
from relic.serve.client import say
from relic.serve.fleet import RouterMetrics
from relic.serve.metrics import Metrics

ROOT = Path(__file__).parents[1]


def scraped(place: Place) -> dict[str, float]:
    """Every sample, by its name and its labels' values."""
    answer = httpx.get(f"{place}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_a_walk_is_counted_from_begin_to_end():
    with serving(FakeWorld(), slots=4) as place:
        with follow(place) as (_, stream):
            say(stream, "action", seq=7, keys=["dolly_in"])
            while see(stream)[0]["receipt"] != 7:
                pass
            during = scraped(place)
            say(stream, "bye")
            closing(stream)
        after = scraped(place)
    assert (during["relic_sessions_active"], during["relic_session_slots"], during["relic_session_slots_used"]) == (
        1,
        4,
        0.25,
    )
    assert during["relic_streams_open"] == during["relic_ready"] == 1
    assert during["relic_memory_bytes process"] > during["relic_memory_bytes walks"] > 0
    assert during["relic_action_to_frame_seconds_count"] == 1
    assert 0 < during["relic_action_to_frame_seconds_sum"] < 2
    assert during["relic_chunk_seconds_count"] >= 1 <= during["relic_queue_wait_seconds_count"]
    assert after["relic_sessions_active"] == after["relic_streams_open"] == after["relic_memory_bytes walks"] == 0
    assert after["relic_sessions_created_total"] == after["relic_sessions_ended_total bye"] == 1
    assert after["relic_frames_sent_total"] >= 2


def test_what_moments_hold_is_counted_and_what_walks_share_once():
    with serving(FakeWorld(), slots=4) as place, follow(place) as (_, stream):
        say(stream, "action", seq=7, keys=["dolly_in"])
        while not (session := next(iter(place.server.scheduler.sessions.values()))).moments:
            see(stream)
        say(stream, "pause")
        while not hear(stream, "state")["paused"]:
            pass
        walks = [session.walk, *(moment.walk for moment in session.moments)]
        found = scraped(place)["relic_memory_bytes walks"]
        actions = {id(walk.actions): walk.actions.nbytes for walk in walks}
        assert found == walks[0].image.nbytes + sum(actions.values())


def test_what_an_alert_waits_for_is_there_before_it_happens():
    with serving(FakeWorld()) as place:
        found = scraped(place)
    for name in ("relic_snapshots_total save_failed", "relic_snapshots_total restore_failed"):
        assert found[name] == 0
    assert found["relic_sessions_ended_total failed"] == 0


def test_alerts_and_the_autoscaler_ask_for_what_is_counted():
    counted = Metrics().show(active=0, slots=1, ready=True, streams=0, walk_bytes=0) + RouterMetrics().show([])
    files = [ROOT / "docs" / "kubernetes.md", ROOT / "docs" / "serving.md", *(ROOT / "charts/relic-serve").rglob("*.*")]
    asked = {name for path in files for name in re.findall(r"\brelic_(?:router_)?[a-z]+_[a-z_]+", path.read_text())}
    assert len(asked) > 20
    for name in asked:
        assert f"# TYPE {name.removesuffix('_bucket')} ".encode() in counted, name


def test_refusals_are_counted_by_status_and_reason():
    with serving(FakeWorld(), slots=1, sessions_each=2) as place:
        for asked in ({"example": "e0"}, {"example": "e0"}, {"example": "nowhere"}):
            post(place, **asked)
        httpx.post(f"{place}/v1/sessions", headers={"origin": "http://evil.example"})
        httpx.get(f"{place}/v1/sessions/x")
        found = scraped(place)
    refused = {name.removeprefix("relic_refusals_total "): n for name, n in found.items() if "refusals_total" in name}
    assert refused == {"full 429": 2, "origin 403": 1, "unauthorized 401": 1}


def test_an_action_is_answered_by_the_first_picture_that_shows_it_and_those_before_it_never():
    session = walk()
    for seq, at in ((1, 0.1), (2, 0.2), (3, 0.5), (4, 0.6)):
        session.act(seq, row("dolly_in"), at)
    assert session.answer_s(0, 1.0) is None
    assert session.answer_s(3, 1.0) == 0.5
    assert session.answer_s(3, 1.1) is None
    assert session.answer_s(2, 1.1) is None
    assert [seq for seq, _ in session.unanswered] == [4]


def test_servers_of_one_process_count_for_themselves():
    one, other = Metrics(), Metrics()
    one.created.inc()
    assert b"relic_sessions_created_total 1.0" in one.show(active=0, slots=1, ready=True, streams=0, walk_bytes=0)
    assert b"relic_sessions_created_total 0.0" in other.show(active=0, slots=1, ready=True, streams=0, walk_bytes=0)


def test_refusals_are_counted_all_and_logged_once_a_second(monkeypatch, caplog):
    caplog.set_level("INFO", "relic.serve")
    metrics, clock = Metrics(), iter([5.0, 5.1, 5.2, 6.1])
    monkeypatch.setattr("relic.serve.metrics.time.monotonic", lambda: next(clock))
    for status in (403, 401, 403, 403):
        metrics.refused(Refused(status, "no"))
    assert [vars(record)["facts"]["status"] for record in caplog.records] == [403, 401, 403]
    assert 'relic_refusals_total{reason="forbidden",status="403"} 3.0' in generate_latest(metrics.registry).decode()
