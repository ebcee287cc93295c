"""Walks that move between servers: two in one process, with one place of snapshots and one secret."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fake_world import FakeWorld, Place, serving
from talk import follow, hear, see, stream_url
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from relic.serve import app
from relic.serve.access import Access
from relic.serve.client import Answered, ask, say
from relic.serve.config import Serve
from relic.serve.wire import unpacked

SECRET = b"s" * 32
HANGING = Path(__file__).with_name("fake_hanging_store.py").as_posix()


@pytest.fixture
def dials(tmp_path: Path) -> dict:
    (tmp_path / "secret").write_bytes(SECRET)
    return {"token_secret": str(tmp_path / "secret"), "snapshots": str(tmp_path / "walks"), "drain_s": 0.0}


@pytest.fixture
def two(dials: dict) -> Iterator[tuple[Place, Place]]:
    with ExitStack() as stack:
        yield tuple(stack.enter_context(serving(FakeWorld(), **dials, slots=2)) for _ in range(2))  # type: ignore[misc]


def router() -> str:
    return Access({}, 60.0, SECRET).issue("router")


def move(place: str, session: dict) -> None:
    ask("POST", f"{place}/v1/sessions/{session['id']}/move", token=router())


def until_moved(stream: ClientConnection) -> tuple[list[int], str]:
    """The sequence numbers of the pictures that still come, and the token with which the walk goes on elsewhere."""
    seen, token = [], ""
    while not token:
        message = stream.recv(10)
        if isinstance(message, bytes):
            seen.append(unpacked(message)[0]["sequence"])
        elif (said := json.loads(message))["type"] == "moved":
            token = said["token"]
    with pytest.raises(ConnectionClosed) as closed:
        stream.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    return seen, token


def until_draining(stream: ClientConnection) -> str:
    while (said := hear(stream, "state"))["state"] != "draining":
        pass
    return said["message"]


def moved(place: Place, *, closing: bool = False) -> tuple[dict, str]:
    """A walk that lies between two servers, for its own was told to move it, or to close; and its token."""
    with follow(place) as (session, stream):
        see(stream)
        if closing:
            place.server.handle_exit(signal.SIGTERM, None)
        else:
            move(place, session)
        return session, until_moved(stream)[1]


@contextmanager
def back(place: str, session: dict, token: str) -> Iterator[ClientConnection]:
    """The walk, from another server."""
    with connect(stream_url(place, session)) as stream:
        say(stream, "hello", token=token)
        hear(stream, "ready")
        yield stream


def refusal(place: str, session: dict, token: str) -> tuple[int, str]:
    with connect(stream_url(place, session)) as stream:
        say(stream, "hello", token=token)
        said = hear(stream, "error")
    return said["code"], said["message"]


def test_a_walk_goes_on_at_another_server_with_the_next_picture(two):
    one, other = two
    with follow(one) as (session, stream):
        say(stream, "action", seq=5, keys=["dolly_in"])
        before = [see(stream)[0] for _ in range(30)]
        move(one, session)
        seen, token = until_moved(stream)
    assert ask("GET", f"{one}/v1/replica", token=router())["sessions"] == []
    with back(other, session, token) as stream:
        first = see(stream)[0]
        say(stream, "action", seq=6, keys=["dolly_in"])
        after = [see(stream)[0] for _ in range(60)]
    numbers = [header["sequence"] for header in before] + seen + [header["sequence"] for header in [first, *after]]
    assert numbers == list(range(len(numbers)))
    assert first["receipt"] == 5
    assert after[-1]["receipt"] == 6
    assert first["pose"][11] >= before[-1]["pose"][11] > 1


def test_sigterm_moves_the_walks_that_are_left(two):
    one, other = two
    session, token = moved(one, closing=True)
    with back(other, session, token) as stream:
        see(stream)
        assert ask("GET", f"{other}/v1/replica", token=router())["sessions"] == [session["id"]]


def test_a_second_signal_does_not_wait(dials):
    with serving(FakeWorld(), **{**dials, "drain_s": 100.0}) as place, follow(place) as (_, stream):
        place.server.handle_exit(signal.SIGTERM, None)
        assert "at most 100 s" in until_draining(stream)
        place.server.handle_exit(signal.SIGTERM, None)
        assert hear(stream, "ended")["reason"] == "closing"


def test_a_walk_that_is_saved_goes_on_though_its_last_pictures_are_not_shown_in_time(two):
    one, other = two
    with follow(one) as (session, stream):
        see(stream)
        one.server.scheduler.sessions[session["id"]].pace.shown_until = time.monotonic() + 60
        one.server.handle_exit(signal.SIGTERM, None)
        while not one.server.scheduler.sessions[session["id"]].saved:
            time.sleep(0.01)
        one.server.handle_exit(signal.SIGTERM, None)  # does not wait for them
        _, token = until_moved(stream)
    with back(other, session, token) as stream:
        see(stream)


def test_a_store_that_hangs_does_not_hold_a_server_up(dials, monkeypatch):
    released = threading.Event()
    with serving(FakeWorld(), **dials, save_s=0.2) as one:
        monkeypatch.setattr(one.server.transfer.snapshots, "save", lambda *_: released.wait(20))
        with follow(one) as (_, stream):
            began = time.monotonic()
            one.server.handle_exit(signal.SIGTERM, None)
            assert hear(stream, "ended")["reason"] == "closing"
    assert time.monotonic() - began < 10
    released.set()


def test_a_process_does_not_wait_for_a_store_that_hangs(dials):
    done = subprocess.run([sys.executable, HANGING, json.dumps(dials)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "ended" in done.stdout


def test_a_reader_that_is_gone_does_not_hold_a_server_up(monkeypatch, caplog):
    monkeypatch.setattr(app, "LAST_S", 0.3)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    monkeypatch.setattr("fake_world.wall", lambda x, scale: noise)
    with serving(FakeWorld(), drain_s=0.0) as place:
        session = ask("POST", f"{place}/v1/sessions", body={"example": "e0"})
        raw = socket.create_connection(("127.0.0.1", urlsplit(place).port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with connect(stream_url(place, session), sock=raw, max_queue=1, close_timeout=0.1) as deaf:
            say(deaf, "hello", token=session["token"])
            say(deaf, "action", seq=1, keys=["pan_left"])
            until = time.monotonic() + 10
            while not unread(place) and time.monotonic() < until:
                time.sleep(0.05)
            began = time.monotonic()
            place.server.handle_exit(signal.SIGTERM, None)
            while place.server.server_state.connections and time.monotonic() < began + 10:
                time.sleep(0.02)
            assert time.monotonic() - began < 3
    assert "graceful shutdown exceeded" not in caplog.text


def unread(place: Place) -> bool:
    """Its only stream waits for its reader."""
    return any(one.transport.get_write_buffer_size() for one in place.server.server_state.connections)


def test_walks_are_saved_one_after_another_while_the_others_go_on(two, monkeypatch):
    one, _ = two
    snapshots, inside, most, walking = one.server.transfer.snapshots, [0], [0], []
    save = snapshots.save

    def slowly(*arguments):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        walking.append(sum(not session.leaving for session in one.server.scheduler.sessions.values()))
        time.sleep(0.2)
        inside[0] -= 1
        return save(*arguments)

    monkeypatch.setattr(snapshots, "save", slowly)
    with follow(one) as (_, first), follow(one) as (_, second):
        one.server.handle_exit(signal.SIGTERM, None)
        for stream in (first, second):
            until_moved(stream)
    assert most == [1]
    assert walking[0] == 1


def test_snapshots_need_the_secret_that_replicas_share():
    with pytest.raises(ValueError, match="snapshots is 'walks' without token_secret"):
        Serve(run="fake", snapshots="walks")


def test_a_lifetime_is_not_begun_anew(two):
    one, other = two
    with follow(one) as (session, stream):
        see(stream)
        one.server.scheduler.sessions[session["id"]].born -= 500
        move(one, session)
        _, token = until_moved(stream)
    with back(other, session, token) as stream:
        assert 600 < hear(stream, "state")["seconds_left"] < 700


def test_a_paused_walk_stays_paused_and_a_walk_without_a_picture_begins_there(two):
    one, other = two
    session = ask("POST", f"{one}/v1/sessions", body={"example": "e1"})
    one.server.scheduler.sessions[session["id"]].pause()
    move(one, session)
    until = time.monotonic() + 5
    while one.server.scheduler.sessions and time.monotonic() < until:
        time.sleep(0.01)
    with connect(stream_url(other, session)) as stream:
        say(stream, "hello", token=session["token"])
        assert hear(stream, "ready")["paused"]
        say(stream, "resume")
        header, _ = see(stream)
    assert (header["sequence"], header["flags"]) == (0, 1)


def test_a_connection_that_was_lost_meanwhile_finds_its_walk_too(two):
    one, other = two
    with follow(one) as (session, stream):
        see(stream)
    move(one, session)
    until = time.monotonic() + 5
    while one.server.scheduler.sessions and time.monotonic() < until:
        time.sleep(0.01)
    with back(other, session, session["token"]) as stream:
        see(stream)


def test_a_full_server_leaves_the_snapshot_for_another(two):
    one, other = two
    taken = [ask("POST", f"{other}/v1/sessions", body={"example": "e0"}) for _ in range(2)]
    with follow(one) as (session, stream):
        move(one, session)
        _, token = until_moved(stream)
    assert refusal(other, session, token)[0] == 429
    ask("DELETE", f"{other}/v1/sessions/{taken[0]['id']}", token=taken[0]["token"])
    with back(other, session, token) as stream:
        see(stream)


def test_a_walk_on_its_way_has_a_slot(two, monkeypatch):
    one, other = two
    engine, arrived = other.server.scheduler.engine, threading.Event()
    restore = engine.restore
    monkeypatch.setattr(engine, "restore", lambda state: arrived.wait(5) and restore(state))
    with follow(one) as (session, stream):
        move(one, session)
        _, token = until_moved(stream)
    ask("POST", f"{other}/v1/sessions", body={"example": "e0"})
    with connect(stream_url(other, session)) as stream:
        say(stream, "hello", token=token)
        while ask("GET", f"{other}/v1/replica", token=router())["active"] != 2:
            time.sleep(0.01)
        assert session["id"] in ask("GET", f"{other}/v1/replica", token=router())["sessions"]
        with pytest.raises(Answered, match=r"409|429"):
            ask("POST", f"{other}/v1/sessions", body={"example": "e0"})
        arrived.set()
        hear(stream, "ready")


def test_another_export_does_not_go_on_with_it(dials):
    world = FakeWorld()
    world.world = replace(world.world, export="0f5d9fe3a7c1b2d4e6f8")
    with serving(FakeWorld(), **dials) as one, serving(world, **dials) as other:
        with follow(one) as (session, stream):
            move(one, session)
            _, token = until_moved(stream)
        assert refusal(other, session, token) == (410, "the saved walk is of another model (); start another one")


def test_only_the_router_moves_a_walk_and_sees_a_replica(two):
    one, _ = two
    with follow(one) as (session, _):
        path = f"{one}/v1/sessions/{session['id']}/move"
        mine = {"authorization": f"Bearer {session['token']}"}
        assert [httpx.post(path).status_code, httpx.post(path, headers=mine).status_code] == [401, 403]
        assert httpx.get(f"{one}/v1/replica", headers=mine).status_code == 403
        seen = ask("GET", f"{one}/v1/replica", token=router())
    assert seen["sessions"] == [session["id"]]
    assert (seen["ready"], seen["draining"], seen["slots"], seen["active"]) == (True, False, 2, 1)


def test_a_server_tells_its_process_from_another_of_its_host(two):
    one, other = (ask("GET", f"{place}/v1/replica", token=router()) for place in two)
    assert one["name"] == other["name"]
    assert one["process"] != other["process"]
    assert one["process"] == ask("GET", f"{two[0]}/v1/replica", token=router())["process"]


def test_without_snapshots_a_walk_stays(tmp_path, dials):
    with serving(FakeWorld(), token_secret=dials["token_secret"]) as place, follow(place) as (session, stream):
        with pytest.raises(Answered, match=r"409.*keeps no snapshots, so its walks cannot move"):
            move(place, session)
        see(stream)


def test_a_walk_that_cannot_be_saved_goes_on(dials, monkeypatch, caplog):
    with serving(FakeWorld(), **dials, save_s=0.3) as one, follow(one) as (session, stream):
        monkeypatch.setattr(one.server.transfer.snapshots, "save", lambda *_: (_ for _ in ()).throw(OSError("full")))
        say(stream, "action", seq=1, keys=["dolly_in"])
        see(stream)
        move(one, session)
        while see(stream)[0]["sequence"] < 60:
            pass
        one.server.handle_exit(signal.SIGTERM, None)
        assert hear(stream, "ended")["reason"] == "closing"
    assert "cannot be saved" in caplog.text


def test_a_store_that_fails_once_while_a_server_closes_is_asked_again(two, monkeypatch, caplog):
    one, other = two
    store, left = one.server.transfer.snapshots.place, ["once"]
    write = store.write

    def flaky(name, *parts):
        if name.endswith("manifest.json") and left:
            left.pop()
            raise ConnectionError("the store is away for a moment")
        return write(name, *parts)

    monkeypatch.setattr(store, "write", flaky)
    session, token = moved(one, closing=True)
    with back(other, session, token) as stream:
        see(stream)


def test_a_walk_whose_store_hangs_goes_on_and_nowhere_else(dials, monkeypatch, caplog):
    released = threading.Event()
    with serving(FakeWorld(), **dials, save_s=0.3) as one, follow(one) as (session, stream):
        transfer = one.server.transfer
        save, states = transfer.snapshots.save, []
        late = lambda *given: [states.append(given), released.wait(20), save(*given)][-1]  # noqa: E731
        monkeypatch.setattr(transfer.snapshots, "save", late)
        say(stream, "action", seq=1, keys=["dolly_in"])
        move(one, session)
        while see(stream)[0]["sequence"] < 60 or session["id"] in transfer.moving:
            pass
        move(one, session)
        while see(stream)[0]["sequence"] < 90:
            pass
        assert len(states) == 1  # no second copy while the first one waits
        one.server.scheduler.finish(one.server.scheduler.sessions[session["id"]], "bye", "")
        released.set()
        until = time.monotonic() + 5
        while transfer.work and time.monotonic() < until:
            time.sleep(0.01)
        assert not transfer.snapshots.place.files()
    assert "cannot be saved" in caplog.text


def test_a_walk_that_ends_while_it_is_saved_does_not_come_back(two, monkeypatch):
    one, other = two
    snapshots = one.server.transfer.snapshots
    save, saving, ended = snapshots.save, threading.Event(), threading.Event()

    def slowly(*arguments):
        saving.set()
        ended.wait(5)
        return save(*arguments)

    monkeypatch.setattr(snapshots, "save", slowly)
    with follow(one) as (session, stream):
        move(one, session)
        saving.wait(5)
        say(stream, "bye")
        assert hear(stream, "ended")["reason"] == "bye"
        ended.set()
        until = time.monotonic() + 5
        while one.server.transfer.work and time.monotonic() < until:
            time.sleep(0.01)
    assert not snapshots.place.files()
    assert refusal(other, session, session["token"])[0] == 404


def test_a_damaged_snapshot_is_refused_with_a_sentence_every_time(two, dials):
    one, other = two
    session, token = moved(one)
    (state,) = Path(dials["snapshots"]).rglob("state.safetensors")
    state.write_bytes(state.read_bytes()[:-1])
    for place in (other, other, one):
        assert refusal(place, session, token) == (410, "the saved walk is damaged; start another one")
    assert other.server.scheduler.metrics.snapshots.labels("restore_failed")._value.get() == 2


def test_a_store_that_fails_once_is_asked_again(two, monkeypatch, caplog):
    one, other = two
    session, token = moved(one)
    store, left = other.server.transfer.snapshots.place, ["once"]
    read = store.read

    def flaky(name, *arguments):
        if "state.safetensors" in name and left:
            left.pop()
            raise ConnectionError("the store is away for a moment")
        return read(name, *arguments)

    monkeypatch.setattr(store, "read", flaky)
    assert refusal(other, session, token) == (503, "the saved walk cannot be read now; connect again")
    with back(other, session, token) as stream:
        see(stream)


def test_a_store_that_hangs_takes_no_slot_and_no_stream_for_ever(dials, monkeypatch, caplog):
    released = threading.Event()
    with serving(FakeWorld(), **dials) as one, serving(FakeWorld(), **dials, lease_s=0.3) as other:
        session, token = moved(one)
        transfer = other.server.transfer
        for call in ("claim", "find"):
            monkeypatch.setattr(transfer.snapshots, call, lambda *_: released.wait(20))
            assert refusal(other, session, token) == (503, "the saved walk cannot be read now; connect again")
            assert not transfer.scheduler.arriving
        with pytest.raises(Answered, match="503"):
            ask("DELETE", f"{other}/v1/sessions/{session['id']}", token=token)
        released.set()


@pytest.mark.parametrize(("call", "code"), [("remove", 410), ("give_back", 503)])
def test_a_store_that_hangs_when_a_walk_cannot_go_on_keeps_no_slot(dials, monkeypatch, caplog, call, code):
    released = threading.Event()
    with serving(FakeWorld(), **dials) as one, serving(FakeWorld(), **dials, lease_s=0.3) as other:
        session, token = moved(one)
        scheduler = other.server.scheduler
        monkeypatch.setattr(scheduler.engine, "restore", lambda state: 1 / 0)
        if call == "give_back":
            monkeypatch.setattr(scheduler.engine, "check", lambda: 1 / 0)
        monkeypatch.setattr(other.server.transfer.snapshots, call, lambda *_: released.wait(20))
        assert refusal(other, session, token)[0] == code
        assert not scheduler.arriving
        assert scheduler.metrics.snapshots.labels("restore_failed")._value.get() == 1
        released.set()


def test_a_walk_that_no_engine_goes_on_with_is_gone(two, monkeypatch, caplog):
    one, other = two
    session, token = moved(one)
    monkeypatch.setattr(other.server.scheduler.engine, "restore", lambda state: 1 / 0)
    assert refusal(other, session, token) == (410, "the saved walk cannot go on here; start another one")
    assert one.server.transfer.snapshots.place.files() == []
    assert refusal(one, session, token)[0] == 404


def test_a_server_whose_device_is_lost_gives_the_walk_back(two, monkeypatch, caplog):
    one, other = two
    session, token = moved(one)
    engine = other.server.scheduler.engine
    monkeypatch.setattr(engine, "restore", lambda state: 1 / 0)
    monkeypatch.setattr(engine, "check", lambda: 1 / 0)
    assert refusal(other, session, token) == (503, "this server's device is lost; connect again")
    with back(one, session, token) as stream:
        see(stream)


def test_a_walk_that_arrives_at_a_server_which_closes_goes_to_another(dials, monkeypatch):
    with serving(FakeWorld(), **dials) as one, serving(FakeWorld(), **dials) as third:
        with serving(FakeWorld(), **dials) as other:
            session, token = moved(one)
            engine, restoring, closed = other.server.scheduler.engine, threading.Event(), threading.Event()
            restore = engine.restore
            monkeypatch.setattr(engine, "restore", lambda state: [restoring.set(), closed.wait(5), restore(state)][-1])
            with connect(stream_url(other, session)) as stream:
                say(stream, "hello", token=token)
                restoring.wait(5)
                other.server.handle_exit(signal.SIGTERM, None)
                while not other.server.scheduler.draining:
                    time.sleep(0.01)
                time.sleep(0.1)  # with nobody walking, who does not wait for it is gone by now
                closed.set()
                assert hear(stream, "error")["code"] == 503
        with back(third, session, token) as stream:
            see(stream)


def test_a_server_that_takes_longer_than_its_claim_leaves_the_walk_to_the_next(two, monkeypatch):
    one, other = two
    session, token = moved(one)
    monkeypatch.setattr("relic.serve.snapshots.CLAIM_S", 1.0)
    engine, restoring, released = other.server.scheduler.engine, threading.Event(), threading.Event()
    restore = engine.restore
    monkeypatch.setattr(engine, "restore", lambda state: [restoring.set(), released.wait(5), restore(state)][-1])
    with connect(stream_url(other, session)) as slow:
        say(slow, "hello", token=token)
        restoring.wait(5)
        time.sleep(1.6)
        with back(one, session, token) as stream:
            see(stream)
            released.set()
            assert hear(slow, "error")["code"] == 503
            assert not other.server.scheduler.sessions


def test_a_walk_between_two_servers_can_be_ended(two):
    one, other = two
    session, token = moved(one)
    with pytest.raises(Answered, match="403"):
        ask("DELETE", f"{other}/v1/sessions/{session['id']}", token=token[:-1])
    ask("DELETE", f"{other}/v1/sessions/{session['id']}", token=token)
    assert one.server.transfer.snapshots.place.files() == []
    with pytest.raises(Answered, match="404"):
        ask("DELETE", f"{other}/v1/sessions/{session['id']}", token=token)


def test_only_its_own_key_ends_a_walk_between_two_servers(dials):
    keys = {"a" * 16: "anna", "b" * 16: "bert"}
    with serving(FakeWorld(), keys, **dials) as one:
        with follow(one, key="a" * 16) as (session, stream):
            move(one, session)
            until_moved(stream)
        path = f"{one}/v1/sessions/{session['id']}"
        with pytest.raises(Answered, match=r"403.*belongs to another API key"):
            ask("DELETE", path, token="b" * 16)
        ask("DELETE", path, token="a" * 16)
        assert one.server.transfer.snapshots.place.files() == []


def test_two_connections_at_once_take_one_walk_on(two):
    one, other = two
    with follow(one) as (session, stream):
        move(one, session)
        _, token = until_moved(stream)
    with connect(stream_url(other, session)) as first, connect(stream_url(other, session)) as second:
        for stream in (first, second):
            say(stream, "hello", token=token)
        for stream in (first, second):
            hear(stream, "ready")
        assert other.server.scheduler.sessions.keys() == {session["id"]}


def test_an_id_tells_of_its_export():
    world = FakeWorld()
    world.world = replace(world.world, export="0f5d9fe3a7c1b2d4e6f8")
    with serving(world) as place:
        session = ask("POST", f"{place}/v1/sessions", body={"example": "e0"})
        assert session["id"].startswith("0f5d9fe3.")
        assert httpx.get(f"{place}/v1/sessions/{session['id']}").status_code == 401


def test_a_server_that_closes_has_removed_what_it_took_on(dials, monkeypatch):
    with serving(FakeWorld(), **dials) as one, serving(FakeWorld(), **dials) as other:
        session, token = moved(one)
        snapshots = other.server.transfer.snapshots
        remove = snapshots.remove
        monkeypatch.setattr(snapshots, "remove", lambda folder: [time.sleep(0.5), remove(folder)])
        with back(other, session, token) as stream:
            say(stream, "bye")
            hear(stream, "ended")
        other.server.handle_exit(signal.SIGTERM, None)
        until = time.monotonic() + 5
        while not other.server.should_exit and time.monotonic() < until:
            time.sleep(0.01)
        assert snapshots.place.files() == []
