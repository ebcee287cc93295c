"""The session API over a real server: every answer a caller can get, right and wrong."""

import base64
import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fake_world import FakeWorld, Place, serving
from PIL import Image
from talk import closing, follow, hear, see, stream_url
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from relic.serve import app, door, limits, transfer
from relic.serve.access import Access
from relic.serve.client import say
from relic.serve.config import Serve
from relic.serve.listener import bind

KEY = "correct-horse-battery"
OTHER = ("127.0.0.2", 0)  # another caller's address


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving(
        FakeWorld(), slots=3, sessions_each=3, message_bytes=2000, image_bytes=20_000, creates_per_minute=1e6
    ) as found:
        yield found


@pytest.fixture(autouse=True)
def empty(place: Place) -> Iterator[None]:
    """Every test leaves the slots free."""
    yield
    scheduler = place.server.scheduler
    for session in list(scheduler.sessions.values()):
        scheduler.finish(session, "deleted", "the test is over")


def post(place: str, **asked) -> httpx.Response:
    return httpx.post(f"{place}/v1/sessions", json=asked or {"example": "e0"})


def bearer(session: dict) -> dict[str, str]:
    return {"authorization": f"Bearer {session['token']}"}


def encoded(kind: str = "PNG", size: tuple[int, int] = (60, 20)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


# --- the walk -------------------------------------------------------------------------------------------------------


def test_a_session_brings_pictures_with_pose_and_receipt(place):
    with follow(place) as (_, stream):
        say(stream, "action", seq=41, keys=["dolly_in"])
        header, jpeg = see(stream)
        while header["receipt"] != 41:
            header, jpeg = see(stream)
    assert Image.open(io.BytesIO(jpeg)).size == (48, 32)
    assert header["version"] == 1
    assert header["pose"][11] > 0  # forward is z
    assert header["sent"] >= header["made"] > 1e12


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_pictures_are_of_the_format_that_was_asked_for(place, kind):
    with follow(place, example="e0", format=kind) as (session, stream):
        assert session["format"] == kind
        picture = Image.open(io.BytesIO(see(stream)[1]))
    assert (picture.format, picture.size) == (kind.upper(), (48, 32))


def test_pictures_come_in_real_time(place):
    with follow(place) as (_, stream):
        say(stream, "action", seq=1, keys=["pan_left"])
        see(stream)
        began = time.monotonic()
        for _ in range(20):
            see(stream)
    assert 0.35 < time.monotonic() - began < 2.0  # 20 pictures at 40 a second


def test_one_thread_steps_all_sessions_in_turn():
    engine = FakeWorld(chunk_s=0.04)
    with serving(engine) as place, follow(place) as (_, one), follow(place) as (_, two):
        say(one, "action", seq=1, keys=["dolly_in"])
        say(two, "action", seq=1, keys=["dolly_in"])
        engine.steps.clear()
        time.sleep(0.6)
    threads, walks = zip(*engine.steps, strict=True)
    counts = [walks.count(walk) for walk in set(walks)]
    assert len(set(threads)) == 1
    assert len(counts) == 2
    assert max(counts) - min(counts) <= 2


def test_pictures_come_without_a_gap_and_paused_none_come():
    engine = FakeWorld()
    with serving(engine) as place, follow(place) as (_, stream):
        say(stream, "action", seq=1, keys=["dolly_in"])
        assert [see(stream)[0]["sequence"] for _ in range(12)] == list(range(12))
        say(stream, "pause")
        assert hear(stream, "state")["paused"] or hear(stream, "state")["paused"]
        time.sleep(0.3)
        engine.steps.clear()
        time.sleep(0.3)
        assert not engine.steps
        say(stream, "resume")
        until = time.monotonic() + 5
        while not engine.steps and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.steps


def test_a_rewound_walk_is_what_it_was_then(place):
    with follow(place) as (_, stream):
        say(stream, "action", seq=1, keys=["pan_left"])
        seen = [see(stream) for _ in range(140)]  # 3.5 s
        say(stream, "rewind", seconds=1.5)
        told = hear(stream, "rewound")
        again = [see(stream) for _ in range(20)]
    then = {tuple(header["pose"]): jpeg for header, jpeg in seen}
    assert again[0][0]["sequence"] == told["sequence"]
    assert 1.0 < told["seconds"] < 3.5
    assert all(then[tuple(header["pose"])] == jpeg for header, jpeg in again)


def test_there_is_no_way_back_before_the_first_moment(place):
    with follow(place) as (_, stream):
        say(stream, "rewind", seconds="long")
        assert hear(stream, "error")["message"].startswith("seconds is 'long'; allowed is above 0 and at most 3600")


def test_a_branch_goes_on_as_the_walk_does(place):
    with follow(place) as (session, one):
        say(one, "action", seq=1, keys=["dolly_in"])
        before = [see(one) for _ in range(30)]
        branch = httpx.post(f"{place}/v1/sessions/{session['id']}/branch", headers=bearer(session))
        assert branch.status_code == 201
        with connect(branch.json()["url"]) as other:
            say(other, "hello", token=branch.json()["token"])
            say(other, "action", seq=1, keys=["dolly_in"])
            branched = [see(other) for _ in range(30)]
        after = [see(one) for _ in range(60)]
    walked = {tuple(header["pose"]): jpeg for header, jpeg in before + after}
    assert branch.json()["id"] != session["id"]
    assert branched[-1][0]["pose"][11] > before[-1][0]["pose"][11] > 1
    assert all(walked[tuple(header["pose"])] == jpeg for header, jpeg in branched)


def test_a_branch_needs_a_slot_and_counts_for_its_owner():
    with serving(FakeWorld(), slots=3, sessions_each=2) as place:
        first = post(place).json()
        url = f"{place}/v1/sessions/{first['id']}/branch"
        assert httpx.post(url).status_code == 401
        assert httpx.post(url, headers=bearer(first)).json()["prompt"] == "wall 0"
        refused = httpx.post(url, headers=bearer(first))
        said = "this address or API key has as many walks as it may: 2; end one first"
        assert (refused.status_code, refused.json()["error"]) == (409, said)


def test_an_unknown_message_gets_a_sentence_and_the_walk_goes_on(place):
    with follow(place) as (_, stream):
        say(stream, "jump")
        said = hear(stream, "error")["message"]
        assert said == "the message type 'jump' is unknown; allowed are hello, action, pause, resume, rewind, ping, bye"
        stream.send(b"\0\1")
        assert "binary" in hear(stream, "error")["message"]
        stream.send("{")
        assert "not JSON" in hear(stream, "error")["message"]
        say(stream, "action", seq=1, keys=["fly"])
        assert "'fly'; this world's actions are dolly_in" in hear(stream, "error")["message"]
        say(stream, "ping", at=5)
        assert hear(stream, "pong")["at"] == 5


def test_bye_and_delete_free_the_slot(place):
    with follow(place) as (session, stream):
        say(stream, "bye")
        assert closing(stream) == ("the page said bye", 1000)
    with follow(place) as (other, stream):
        assert httpx.delete(f"{place}/v1/sessions/{other['id']}", headers=bearer(other)).status_code == 204
        assert closing(stream) == ("it was deleted", 1000)
    assert not place.server.scheduler.sessions
    assert httpx.get(f"{place}/v1/sessions/{session['id']}", headers=bearer(session)).status_code == 410


def test_a_walk_that_has_ended_is_deleted_by_who_may_and_by_nobody_else(place):
    session = post(place).json()
    url, wrong = f"{place}/v1/sessions/{session['id']}", {"token": session["token"][:-2] + "xx"}
    assert [httpx.delete(url, headers=bearer(session)).status_code for _ in range(2)] == [204, 204]
    assert httpx.delete(url, headers=bearer(wrong)).status_code == 403
    place.server.scheduler.ended.clear()  # it is unknown now
    assert httpx.delete(url, headers=bearer(session)).status_code == 404


def test_a_server_whose_door_does_not_open_closes_all_the_same(monkeypatch):
    monkeypatch.setattr(door.Door, "_start", functools.partialmethod(shut))
    with serving(FakeWorld()) as place:
        assert post(place).status_code == 201
    with pytest.raises(RuntimeError, match="after shutdown"):
        place.server.scheduler.worker.thread.submit(print)


async def shut(self: door.Door) -> door.Doorman:
    raise OSError("no process can be started")


def test_a_lost_connection_comes_back_with_the_token(place):
    with follow(place) as (session, stream):
        see(stream)
    with connect(session["url"]) as again:
        say(again, "hello", token=session["token"])
        assert hear(again, "ready")["session"] == session["id"]
        see(again)


def test_a_failing_walk_ends_alone(place, caplog):
    with follow(place) as (_, healthy), follow(place, example="e0", prompt="broken") as (_, broken):
        assert "engine failed" in closing(broken)[0]
        say(healthy, "ping")
        hear(healthy, "pong")
    assert httpx.get(f"{place}/healthz").status_code == 200


# --- admission ------------------------------------------------------------------------------------------------------


def test_a_full_server_says_429_and_when_to_come_again():
    with serving(FakeWorld(), slots=1, sessions_each=2) as place:
        post(place)
        answer = post(place)
    assert answer.status_code == 429
    assert 2 <= int(answer.headers["retry-after"]) <= 30
    assert answer.json()["error"].startswith("all 1 places are taken")


def test_one_principal_has_a_limit_and_only_its_own_sessions():
    keys = {KEY: "ann", KEY[::-1]: "bob"}
    with serving(FakeWorld(), keys, slots=4, sessions_each=1) as place:
        ann, bob = ({"authorization": f"Bearer {key}"} for key in keys)
        first = httpx.post(f"{place}/v1/sessions", json={"example": "e0"}, headers=ann)
        assert httpx.post(f"{place}/v1/sessions", json={"example": "e0"}, headers=ann).status_code == 409
        assert httpx.post(f"{place}/v1/sessions", json={"example": "e0"}, headers=bob).status_code == 201
        url = f"{place}/v1/sessions/{first.json()['id']}"
        assert [httpx.get(url, headers=who).status_code for who in (ann, bob, {})] == [200, 403, 401]
        assert post(place).status_code == 401
        wrong = httpx.post(f"{place}/v1/sessions", json={"example": "e0"}, headers={"authorization": "Bearer nonsense"})
        assert wrong.status_code == 403


def test_a_token_opens_its_own_session_only(place):
    first, second = post(place).json(), post(place).json()
    cases = [
        (second["url"], first["token"], 4403), (first["url"], first["token"][:-2] + "xx", 4403),
        (first["url"], None, 4401), (first["url"].replace(first["id"], "nobody"), first["token"], 4403),
    ]  # fmt: skip
    for url, token, code in cases:
        with connect(url) as stream:
            say(stream, "hello", token=token)
            assert closing(stream)[1] == code


def test_a_token_ends_and_a_pong_brings_a_fresh_one(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 32)
    with serving(FakeWorld(), token_secret=str(secret)) as place, follow(place) as (session, stream):
        with connect(session["url"]) as late:
            say(late, "hello", token=Access({}, -1.0, b"x" * 32).issue(session["id"]))
            assert closing(late) == ("the token is over; it lives 60 s and every pong brings a fresh one", 4403)
        say(stream, "ping")
        fresh = hear(stream, "pong")["token"]
        assert fresh != session["token"]
        with connect(session["url"]) as again:
            say(again, "hello", token=fresh)
            hear(again, "ready")


def test_the_first_message_must_be_hello_and_come_in_time(place):
    with connect(post(place).json()["url"]) as stream:
        say(stream, "ping")
        assert closing(stream) == ("the first message is 'ping'; it must be hello with the session's token", 4401)
    with serving(FakeWorld(), hello_s=0.1) as hasty, connect(post(hasty).json()["url"]) as stream:
        assert closing(stream) == ("no hello came within 0.1 s, or before another caller needed the place", 4408)


def test_idle_and_forgotten_sessions_end(place):
    sessions, forgotten = place.server.scheduler.sessions, post(place).json()
    sessions[forgotten["id"]].lease_until -= 20
    with follow(place) as (session, stream):
        sessions[session["id"]].acted -= 180
        assert closing(stream) == ("no key was pressed for 180 s; start another walk", 1000)
    answer = httpx.get(f"{place}/v1/sessions/{forgotten['id']}", headers=bearer(forgotten))
    assert answer.json()["error"].endswith("nobody was connected for 20 s; start another walk")


def test_who_asks_too_often_hears_when_to_come_again(place):
    with serving(FakeWorld(), slots=9, sessions_each=9, creates_per_minute=3) as quick:
        session = post(quick).json()
        branch = f"{quick}/v1/sessions/{session['id']}/branch"
        assert httpx.post(branch, headers=bearer(session)).status_code == 201
        assert post(quick, example="nowhere").status_code == 422  # counts too: an image costs work before it is wrong
        for answer in (post(quick), httpx.post(branch, headers=bearer(session))):
            assert answer.status_code == 429
            assert answer.json()["error"] == "you asked for too many walks; allowed are 3 a minute"
            assert 1 <= int(answer.headers["retry-after"]) <= 20


def test_one_callers_streams_without_a_hello_keep_nobody_else_out():
    with serving(FakeWorld(), sockets=8) as place, follow(place) as (session, _), contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(session["url"]))
        with pytest.raises(InvalidStatus) as error, connect(session["url"]):
            pass
        assert (error.value.response.status_code, error.value.response.headers["retry-after"]) == (503, "2")
        said = b"3 streams are open already, 2 of them without a hello, 3 of them yours"
        assert said in error.value.response.body
        with connect(session["url"], source_address=OTHER) as other:
            say(other, "hello", token=session["token"])
            hear(other, "ready")


def test_streams_without_a_hello_of_a_few_callers_make_room_for_another():
    with serving(FakeWorld(), sockets=8) as place, contextlib.ExitStack() as stack:
        session = httpx.post(f"{place}/v1/sessions", json={"example": "e0"}).json()
        silent = [
            stack.enter_context(connect(session["url"], source_address=(f"127.0.0.{last}", 0))) for last in (2, 2, 3, 3)
        ]
        with connect(session["url"]) as stream:
            say(stream, "hello", token=session["token"])
            hear(stream, "ready")
        assert closing(silent[0])[1] == 4408
        for line in silent[1:]:
            say(line, "hello", token=session["token"])
            hear(line, "ready")


def test_messages_over_the_rate_are_dropped_with_a_sentence_and_the_walk_goes_on(place):
    with serving(FakeWorld(), messages_per_s=20) as slow, follow(slow) as (_, stream):
        for at in range(60):
            say(stream, "ping", at=at)
        said = hear(stream, "error")["message"]
        assert said == "more than 20 messages a second came; what is over the rate is dropped"
        time.sleep(0.2)
        say(stream, "ping", at=100)
        answered = [hear(stream, "pong")["at"]]
        while answered[-1] != 100:
            answered.append(hear(stream, "pong")["at"])
        assert len(answered) < 60


@pytest.mark.parametrize("message", ["{}", b"\0", "["])
def test_a_stream_that_floods_is_closed_and_another_does_not_notice(monkeypatch, message):
    def flood(stream) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                stream.send(message)
                time.sleep(0.003)

    monkeypatch.setattr(limits, "FLOOD_S", 0.3)
    with serving(FakeWorld(), messages_per_s=20) as place, follow(place) as (_, quiet), follow(place) as (_, stream):
        sender = threading.Thread(target=flood, args=(stream,))
        sender.start()
        assert closing(stream) == ("more than 20 messages a second came for 0.3 s", 4429)
        sender.join()
        say(quiet, "ping", at=1)
        assert hear(quiet, "pong")["at"] == 1


def test_rewinds_have_a_rate_of_their_own(place):
    with follow(place) as (_, stream):
        for _ in range(6):
            say(stream, "rewind", seconds=1)
        sentences = [hear(stream, "error")["message"] for _ in range(6)]
    assert sentences[-1] == "rewinds come too fast; allowed is 1 a second"


def test_a_new_connection_brings_no_new_rewinds(place):
    with follow(place) as (session, first):
        for _ in range(5):
            say(first, "rewind", seconds=1)
        [hear(first, "error") for _ in range(5)]
        with connect(stream_url(place, session), proxy=None) as second:
            say(second, "hello", token=session["token"])
            say(second, "rewind", seconds=1)
            assert hear(second, "error")["message"] == "rewinds come too fast; allowed is 1 a second"


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "status", "sentence"),
    [
        ({"example": "nowhere"}, 422, "there is no example 'nowhere'; there are e0, e1, e2"),
        ({"prompt": "x"}, 422, "give either an example or an image"),
        ({"example": "e0", "seed": "one"}, 422, "seed is 'one'; it should be a valid integer"),
        ({"example": "e0", "seed": -1}, 422, "seed is -1; it should be greater than or equal to 0"),
        ({"example": "e0", "colour": 1}, 422, "'colour' is unknown; allowed are example, image, prompt"),
        ({"example": "e0", "x" * 9000: 1}, 422, "'xxxxx"),
        ({"example": "e0", "format": "gif"}, 422, "format is 'gif'; it should be 'jpeg' or 'webp'"),
        ({"example": "e0", "speed": 90}, 422, "speed is 90.0; allowed is above 0 and at most 2.5"),
        ({"example": "e0", "prompt": "x" * 401}, 422, "the prompt has 401 characters; allowed are 400"),
        ({"image": "AAAA"}, 422, "the image is of no known format; allowed is a PNG, JPEG or WEBP in base64"),
        ({"image": "???"}, 422, "the image is broken"),
        ({"image": encoded()[:80]}, 422, "the image is"),
        ({"image": encoded("GIF")}, 422, "the image is of no known format"),
        ({"image": "A" * 30_000}, 413, "the image has 22500 bytes; allowed are 20000"),
        ({"image": "A" * 300_000}, 413, "the body is larger than"),
    ],
)
def test_a_wrong_request_gets_a_status_and_a_sentence(place, asked, status, sentence):
    answer = post(place, **asked)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(sentence)
    assert len(answer.content) < 300


def test_only_json_is_taken(place):
    answer = httpx.post(f"{place}/v1/sessions", content="{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert answer.json()["error"] == "the content type is 'text/plain'; allowed is application/json"
    broken = httpx.post(f"{place}/v1/sessions", content="{", headers={"content-type": "application/json"})
    assert broken.status_code == 422


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_uploaded_image_is_cropped_to_the_worlds_size(place, kind):
    assert post(place, image=encoded(kind), prompt="red").status_code == 201


def test_an_image_that_ends_its_decoder_is_a_sentence_and_the_next_one_is_taken(monkeypatch):
    with serving(FakeWorld(), image_seconds=3) as place:
        monkeypatch.setattr(door.Door, "_start", functools.partialmethod(hanging, door.Door._start))
        answer = post(place, image=encoded())
        assert (answer.status_code, answer.json()["error"]) == (413, "the image took longer than 3 s to decode")
        monkeypatch.undo()
        assert post(place, image=encoded()).status_code == 201
        assert httpx.get(f"{place}/healthz").status_code == 200


async def hanging(self: door.Door, start) -> door.Doorman:
    """The process, stopped: it answers nothing."""
    doorman = await start(self)
    os.kill(doorman.process.pid, signal.SIGSTOP)
    return doorman


def test_a_message_that_is_too_long_ends_the_connection(place):
    with follow(place) as (_, stream):
        say(stream, "action", seq=1, keys=["x" * 2000])
        assert closing(stream)[1] == 4413
    with follow(place) as (_, stream):
        stream.send("x" * 100_000)
        assert closing(stream)[1] == 1009


# --- the server -----------------------------------------------------------------------------------------------------


def test_the_world_says_what_a_page_needs(place):
    world = httpx.get(f"{place}/v1/world").json()
    assert (world["width"], world["height"], world["fps"]) == (48, 32, 40.0)
    assert world["actions"][12] == "static"
    assert "roll_cw" not in world["trained"]
    answer = httpx.get(f"{place}{world['examples'][1]['image']}")
    assert Image.open(io.BytesIO(answer.content)).size == (48, 32)
    assert httpx.get(f"{place}/v1/examples/99.jpg").json()["error"] == "there is no example '99.jpg'; there are 3"


def test_readiness_waits_for_the_warm_engine():
    with serving(FakeWorld()) as place:
        assert httpx.get(f"{place}/readyz").status_code == 200
        place.server.scheduler.warm = False
        assert httpx.get(f"{place}/readyz").status_code == 503
        assert post(place).json()["error"] == "the server is still warming up"


def test_a_dead_device_fails_the_health_check(caplog):
    class Dead(FakeWorld):
        def check(self) -> None:
            raise RuntimeError("the device fell off the bus")

    with serving(Dead()) as place, follow(place, example="e0", prompt="broken") as (_, stream):
        assert "engine failed" in closing(stream)[0]
        assert httpx.get(f"{place}/healthz").json() == {"alive": False, "fault": "the device fell off the bus"}
        answer = post(place)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert answer.json()["error"] == "the device of this server has failed; it takes no walks"


def test_an_engine_that_does_not_run_is_not_still_warming_up(caplog):
    class Broken(FakeWorld):
        def open(self, *asked):
            raise RuntimeError("no kernel image is available")

    with serving(Broken()) as place:
        assert post(place).json()["error"] == "the device of this server has failed; it takes no walks"


@pytest.mark.parametrize("part", ["run", "tidy"])
def test_a_part_of_the_server_that_fails_fails_the_health_check(part, monkeypatch, caplog):
    if part == "tidy":
        monkeypatch.setattr(transfer.Transfer, "tidy", bugged)
    with serving(FakeWorld()) as place:
        if part == "run":
            monkeypatch.setattr(place.server.scheduler, "expire", bug)
        until = time.monotonic() + 5
        while (answer := httpx.get(f"{place}/healthz")).status_code == 200 and time.monotonic() < until:
            time.sleep(0.01)
    assert answer.json() == {"alive": False, "fault": "a part of the server has failed; its log says how"}
    assert "a bug" in caplog.text


def bug(*_) -> None:
    raise RuntimeError("a bug")


async def bugged(*_) -> None:
    bug()


def test_a_walk_on_its_way_here_has_a_slot_everywhere(place):
    scheduler = place.server.scheduler
    scheduler.arriving["x.y"] = "ann"
    try:
        post(place)
        world, ready = httpx.get(f"{place}/v1/world").json(), httpx.get(f"{place}/readyz").json()
        assert (world["free"], ready["active"], scheduler.num_taken) == (1, 2, 2)
        assert "relic_sessions_active 2.0" in httpx.get(f"{place}/metrics").text
    finally:
        scheduler.arriving.clear()


def test_sigterm_lets_walks_finish_and_admits_nobody():
    with serving(FakeWorld()) as place, follow(place) as (_, stream):
        place.server.handle_exit(signal.SIGTERM, None)
        while "draining" not in (state := hear(stream, "state"))["state"]:
            pass
        assert "the server is closing" in state["message"]
        assert httpx.get(f"{place}/readyz").status_code == 503
        assert post(place).status_code == 503
        see(stream)
        say(stream, "bye")
        until = time.monotonic() + 5
        while not place.server.should_exit and time.monotonic() < until:
            time.sleep(0.02)
        assert place.server.should_exit


def test_a_port_in_use_is_one_sentence_before_anything_loads():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} on 127.0.0.1 is in use; choose another"):
            app.main(Serve(run="nowhere", port=port))


def test_a_host_that_others_reach_needs_keys():
    with pytest.raises(ValueError, match=r"host 0.0.0.0 can be reached from other machines; give --api-keys"):
        Serve(run="x", host="0.0.0.0")
    assert Serve(run="x", host="0.0.0.0", open_to_all=True).host == "0.0.0.0"


def test_nothing_but_the_engine_thread_is_left_running(place):
    def left() -> int:
        return sum(thread.name.startswith("engine") for thread in threading.enumerate())

    end = time.monotonic() + 10  # servers that other tests have closed may still be ending
    while left() > 1 and time.monotonic() < end:
        time.sleep(0.05)
    assert left() <= 1


def test_a_server_whose_engine_hangs_ends_at_sigterm() -> None:
    script = (
        "import os, signal, time; from fake_world import FakeWorld\n"
        "from relic.serve import app, engine, scheduler; from relic.serve.config import Serve\n"
        "class Hangs(FakeWorld):\n"
        "    def open(self, *_): os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
        "engine.load, scheduler.LAST_S = lambda *_: Hangs(), 0.1\n"
        "app.main(Serve(run='fake', port=0))"
    )
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # tests' folder among them
    assert subprocess.run([sys.executable, "-c", script], env=place, timeout=50).returncode == 0


def test_a_server_that_still_loads_ends_at_sigterm() -> None:
    script = (
        "import os, signal, time; from relic.serve import app, engine; from relic.serve.config import Serve\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Linux does for process 1 of a container\n"
        "engine.load = lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60)\n"
        "app.main(Serve(run='fake', port=0))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert said.stderr.rstrip().endswith("KeyboardInterrupt")
