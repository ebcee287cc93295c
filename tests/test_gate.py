"""The gate: whose pages may call, and what every answer carries."""

import json

import httpx
import pytest
from fake_world import FakeWorld, Place, serving
from talk import hear
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from relic.serve.client import say
from relic.serve.config import Serve

FRIEND = "https://friend.example"


@pytest.fixture(scope="module")
def place():
    with serving(FakeWorld(), origins=(FRIEND,), slots=9, sessions_each=9) as found:
        yield found


def post(place: Place, origin: str | None, **headers: str) -> httpx.Response:
    sent = headers | ({} if origin is None else {"origin": origin})
    return httpx.post(f"{place}/v1/sessions", json={"example": "e0"}, headers=sent)


def strangers(place: Place) -> list[str]:
    host = place.removeprefix("http://")
    return [
        "http://evil.example",
        "null",
        f"http://evil.example/{host}",
        f"http://{host}.evil.example",
        "http://",
        "http://[",
        host,
    ]


def test_a_page_of_another_site_begins_no_walk(place):
    for origin in strangers(place):
        answer = post(place, origin)
        assert (answer.status_code, answer.json()) == (403, {"error": "pages of another site may not call this server"})
    assert not place.server.scheduler.sessions


def test_the_own_page_a_friend_and_a_program_begin_one(place):
    for origin in (str(place), FRIEND, FRIEND.upper(), None):
        assert post(place, origin).status_code == 201
    assert post(place, "https://world.example", host="world.example").status_code == 201  # TLS ends at a proxy


def test_a_page_of_another_site_ends_none_and_walks_in_none(place):
    session = post(place, None).json()
    headers = {"authorization": f"Bearer {session['token']}", "origin": "http://evil.example"}
    assert httpx.delete(f"{place}/v1/sessions/{session['id']}", headers=headers).status_code == 403
    for origin in strangers(place):
        with pytest.raises(InvalidStatus) as error, connect(session["url"], origin=origin):
            pass
        assert error.value.response.status_code == 403
        assert b"pages of another site" in error.value.response.body
        assert error.value.response.headers["x-content-type-options"] == "nosniff"
    with connect(session["url"], origin=str(place)) as stream:
        say(stream, "hello", token=session["token"])
        hear(stream, "ready")


def test_a_browser_lets_a_friend_s_page_ask_and_read_and_no_other(place):
    for origin, said in [(FRIEND, FRIEND), ("http://evil.example", None)]:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        before, after = (
            httpx.options(f"{place}/v1/sessions", headers=headers),
            httpx.get(f"{place}/v1/world", headers=headers),
        )
        assert before.headers.get("access-control-allow-origin") == said
        assert after.headers.get("access-control-allow-origin") == said
        assert before.is_success == ("content-type" in before.headers.get("access-control-allow-headers", ""))


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/v1/sessions/x/streams"])
def test_a_stream_to_a_wrong_path_is_told_so(place, path):
    with pytest.raises(InvalidStatus) as error, connect(place.replace("http", "ws") + path):
        pass
    assert error.value.response.status_code == 404
    said = f"there is no stream at '{path}'; a walk's is /v1/sessions/ID/stream"
    assert json.loads(error.value.response.body) == {"error": said}


@pytest.mark.parametrize("path", ["/", "/v1/world", "/nowhere", "/web/nothing.js"])
def test_every_answer_carries_the_headers_and_lets_no_other_site_read(place, path):
    answer = httpx.get(f"{place}{path}", headers={"origin": "http://evil.example"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


def test_so_does_the_answer_to_a_request_in_which_the_server_failed(place, monkeypatch, caplog):
    monkeypatch.setattr(place.server.scheduler, "find", None)
    session = post(place, None).json()
    headers = {"authorization": f"Bearer {session['token']}"}
    answer = httpx.get(f"{place}/v1/sessions/{session['id']}", headers=headers)
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")


@pytest.mark.parametrize("origin", ["friend.example", "https://friend.example/", "*", "file://x"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ValueError, match="allowed are http"):
        Serve(run="x", origins=(origin,))
