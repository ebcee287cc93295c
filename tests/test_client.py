"""The Python client against a real server."""

import base64
import io
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fake_world import FakeWorld, Place, serving
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State
from websockets.sync.client import ClientConnection

from relic.serve import client


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving(FakeWorld(), slots=4, sessions_each=4, rewind_every_s=0.3) as found:
        yield found


def frames(walk: client.Walk, count: int) -> list[client.Frame]:
    return list(itertools.islice(walk.frames(), count))


def lose(walk: client.Walk) -> None:
    walk.stream.socket.shutdown(socket.SHUT_RDWR)


def test_frames_are_arrays_with_pose_and_receipt(place):
    with client.begin(place, example="e1", seed=7) as walk:
        receipt = walk.act("dolly_in", speed=2.0)
        seen = frames(walk, 20)
        assert walk.session["seed"] == 7
    assert [frame.sequence for frame in seen] == list(range(20))
    assert [frame.still for frame in seen] == [True] + [False] * 19
    assert seen[-1].receipt == receipt
    assert seen[-1].image.shape == (32, 48, 3)
    assert seen[-1].pose.shape == (4, 4)
    assert seen[-1].pose[2, 3] > 0  # forward is z
    assert not place.server.scheduler.sessions


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_an_image_and_a_format_are_asked_for(place, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(buffer, "PNG")
    with client.begin(place, image=buffer.getvalue(), prompt="grey", format=kind) as walk:
        (first,) = frames(walk, 1)
    assert Image.open(io.BytesIO(first.data)).format == kind.upper()
    assert np.abs(first.image.astype(int) - 90).max() < 4


def test_a_walk_comes_back_by_itself_and_holds_what_was_held(place):
    with client.begin(place) as walk:
        receipt = walk.act("pan_left")
        seen = frames(walk, 10)
        lose(walk)
        seen += frames(walk, 40)
        assert walk.num_lost == 1
    assert np.all(np.diff([frame.sequence for frame in seen]) > 0)
    turns = [float(np.abs(b.pose - a.pose).max()) for a, b in itertools.pairwise(seen[-10:])]
    assert min(turns) > 0.01  # it still turns
    assert seen[-1].receipt == receipt


def test_what_was_seen_is_not_shown_again(place):
    with client.begin(place) as walk:
        walk.last = 12
        assert [frame.sequence for frame in frames(walk, 3)] == [13, 14, 15]


def test_an_action_brings_a_lost_walk_back_too(place):
    with client.begin(place) as walk:
        frames(walk, 5)
        lose(walk)
        time.sleep(0.1)
        receipt = walk.act("pan_left")
        assert next(frame for frame in walk.frames() if frame.receipt == receipt)


def test_a_walk_that_was_taken_over_has_ended(place):
    with client.begin(place) as walk:
        other = client.Walk(place, walk.session)
        while walk.stream.state is not State.CLOSED:  # so the sentence waits behind a connection that is closed
            time.sleep(0.01)
        with pytest.raises(client.Ended, match="another connection has taken this walk over"):
            frames(walk, 1000)
        other.close()
        walk.close()  # it has ended already


def test_a_paused_walk_makes_no_frames_and_stays_paused_when_it_comes_back(place):
    with client.begin(place) as walk:
        walk.act("pan_left")
        frames(walk, 5)
        walk.pause()
        while walk.frame(0.3):
            pass
        assert walk.state["paused"]
        lose(walk)
        assert walk.frame(0.3) is None
        assert (walk.num_lost, walk.ready["paused"]) == (1, True)
        walk.resume()
        assert walk.frame() is not None


def test_a_walk_goes_back_and_branches(place):
    with client.begin(place) as walk:
        walk.act("dolly_in")
        furthest = max(frame.pose[2, 3] for frame in frames(walk, 80))
        walk.act()
        walk.rewind(1.0)
        seen = [frame for frame in frames(walk, 30) if walk.rewound and frame.sequence >= walk.rewound["sequence"]]
        assert seen[0].pose[2, 3] < furthest
        with walk.branch() as other:
            assert other.id != walk.id
            assert abs(frames(other, 3)[-1].pose[2, 3] - frames(walk, 1)[0].pose[2, 3]) < 0.5


def test_a_walk_that_the_server_ends_says_why(place):
    with client.begin(place) as walk:
        frames(walk, 2)
        place.server.scheduler.finish(place.server.scheduler.sessions[walk.id], "idle", "no key was pressed")
        assert len(list(walk.frames())) < 20
        assert (walk.over["reason"], walk.over["message"]) == ("idle", "no key was pressed")
        assert walk.frame() is None


def test_a_walk_that_cannot_be_deleted_leaves_no_connection(place):
    walk = client.begin(place)
    token, walk.token = walk.token, "wrong"
    with pytest.raises(client.Answered, match="403"):
        walk.close()
    with pytest.raises(ConnectionClosed):
        walk.stream.send("{}")
    client.ask("DELETE", f"{place}/v1/sessions/{walk.id}", token=token)


def test_a_thread_that_reads_ends_when_another_leaves_the_walk(place):
    walk, seen = client.begin(place), []
    reader = threading.Thread(target=lambda: seen.extend(walk.frames()), daemon=True)
    reader.start()
    walk.__exit__(KeyError)
    reader.join(2)
    assert not reader.is_alive()
    assert (walk.over, walk.num_lost) == ({}, 0)
    place.server.scheduler.finish(place.server.scheduler.sessions[walk.id], "bye", "")


def test_a_walk_that_is_left_while_it_comes_back_has_no_connection(place, monkeypatch):
    walk = client.begin(place)
    connected = walk._connected

    def meanwhile() -> ClientConnection:
        walk.__exit__(KeyError)  # as another thread may
        return connected()

    monkeypatch.setattr(walk, "_connected", meanwhile)
    lose(walk)
    list(walk.frames())
    assert walk.stream.state is State.CLOSED
    place.server.scheduler.finish(place.server.scheduler.sessions[walk.id], "bye", "")


def test_a_walk_that_has_ended_hears_nothing_more(place):
    with client.begin(place) as walk:
        place.server.scheduler.finish(place.server.scheduler.sessions[walk.id], "idle", "no key was pressed")
        while walk.stream.state is not State.CLOSED:  # so the sentence waits behind a connection that is closed
            time.sleep(0.01)
        walk.act("pan_left")
        list(walk.frames())
        walk.act("pan_left")
        assert (walk.over["message"], walk.num_lost) == ("no key was pressed", 0)


def test_a_connection_that_is_lost_as_it_comes_back_comes_back_again(place, monkeypatch):
    with client.begin(place) as walk:
        walk.act("pan_left")
        frames(walk, 5)
        connected, left = walk._connected, ["once"]

        def losing() -> ClientConnection:
            walk.stream = connected()
            if left.pop() == "once":
                left.append("again")
                walk.stream.close()
            return walk.stream

        monkeypatch.setattr(walk, "_connected", losing)
        lose(walk)
        frames(walk, 10)
        assert walk.num_lost == 2


def seconds_left(token: str) -> float:
    payload = token.partition(".")[0]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["until"] - time.time()


def test_tokens_are_renewed_while_frames_are_read(place, monkeypatch):
    late_s, now = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: now() + late_s[0])
    with client.begin(place) as walk:
        walk.act("pan_left")
        frames(walk, 1)
        walk.session["token_seconds"], walk.ping_at = 0.3, 0.0  # a new one every 0.1 s
        for late_s[0] in (40.0, 80.0):  # the first one's life is 60 s
            assert any(seconds_left(walk.token) > 30 for _ in itertools.islice(walk.frames(), 200))
        assert seconds_left(walk.session["token"]) < 0
        lose(walk)
        assert frames(walk, 1)


def test_a_walk_that_another_server_does_not_know_yet_is_asked_for_again(place):
    sessions = place.server.scheduler.sessions
    with client.begin(place) as walk:
        frames(walk, 3)
        arriving = threading.Timer(0.5, sessions.__setitem__, (walk.id, sessions.pop(walk.id)))
        arriving.start()
        lose(walk)
        walk.act("pan_left")
        assert frames(walk, 3)[0].sequence > 2
        assert any("there is no session" in said for said in walk.errors)
        arriving.join()


def test_a_walk_whose_first_connection_is_refused_is_begun_again_while_one_waits(place, monkeypatch):
    connected, refused = client.Walk._connected, []

    def once(walk: client.Walk) -> ClientConnection:
        if not refused:
            refused.append(walk)
            raise client.Ended("there is no session")
        return connected(walk)

    monkeypatch.setattr(client.Walk, "_connected", once)
    with client.begin(place, wait_s=5) as walk:
        assert walk.id != refused[0].id
    refused[0].close()


def test_what_the_server_refuses_is_its_sentence(place):
    with pytest.raises(client.Answered, match="there is no example 'nowhere'") as refused:
        client.begin(place, example="nowhere")
    assert refused.value.status == 422


def test_who_does_not_come_back_within_the_lease_has_ended(monkeypatch):
    with serving(FakeWorld(), lease_s=0.5) as closes:
        walk = client.begin(closes)
        frames(walk, 3)
        closes.server.should_exit = closes.server.force_exit = True
        with pytest.raises(client.Ended, match="the connection was lost and did not come back"):
            frames(walk, 1000)


def test_an_action_that_is_refused_does_not_end_a_pause(place):
    with client.begin(place, example="e1") as walk:
        frames(walk, 4)
        walk.pause()
        walk.act("roll_cw")  # this world knows none
        until = time.monotonic() + 5
        while not (walk.errors and walk.paused) and time.monotonic() < until:
            walk.frame(0.1)
        assert walk.paused
        walk.resume()
        until = time.monotonic() + 5
        while walk.state["paused"] and time.monotonic() < until:
            walk.frame(0.1)
        assert not walk.paused
