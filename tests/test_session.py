"""One session's bookkeeping: which actions a chunk takes, pauses, moments to go back to, and when it ends."""

from concurrent.futures import Future

import numpy as np
import pytest
from fake_world import TRAINED, FakeWalk, FakeWorld

from relic.geometry.actions import ACTIONS, STATIC
from relic.serve.config import Serve
from relic.serve.pace import Made
from relic.serve.session import Asked, Session, static_row
from relic.serve.wire import parse_action

CFG = Serve(run="fake", rest_s=1.0, idle_s=20.0, session_s=100.0, lease_s=10.0)
WORLD = dict.fromkeys(TRAINED, 1.0) | {"pan_right": 4.0}


def walk(now: float = 0.0, walked: FakeWalk | None = None) -> Session:
    session = Session(
        "here.1", principal="me", image=None, asked=Asked(caption="", seed=0, speed=1.0), cfg=CFG, fps=16.0, now=now,
        walk=walked or FakeWorld().open(np.zeros((32, 48, 3), np.uint8), "", 0),
    )  # fmt: skip
    session.attach(now)
    return session


def row(*names: str) -> np.ndarray:
    return parse_action({"seq": 0, "keys": list(names)}, WORLD, CFG, 1.0)[1]


def made(count: int) -> list[Made]:
    encoded: Future[bytes] = Future()
    encoded.set_result(b"jpeg")
    return [(encoded, np.eye(4))] * count


def chunk(session: Session, now: float) -> None:
    """A chunk of four pictures that are all made at that time."""
    session.begin(4)
    session.deliver(made(len(session.pace.coming)), now=now, made_ms=0.0)
    session.finish(now, chunk_s=0.0, decode_s=0.0)


def test_no_key_is_the_static_action():
    actions, receipts = walk().take(4)
    assert (actions == static_row()).all()
    assert actions[0, STATIC] == 1
    assert receipts == [0] * 4


def test_keys_are_multiplied_by_the_speed_and_by_the_worlds_magnitude():
    _, actions = parse_action({"seq": 1, "keys": ["dolly_in", "pan_right"], "speed": 1.5}, WORLD, CFG, 1.0)
    assert actions[ACTIONS.index("dolly_in")] == 1.5
    assert actions[ACTIONS.index("pan_right")] == 6.0
    assert actions[STATIC] == 0


def test_opposite_keys_cancel_to_static():
    assert (row("dolly_in", "dolly_out") == static_row()).all()


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ({"seq": 1, "keys": ["roll_cw"]}, "roll_cw"),
        ({"seq": 1, "keys": [1.0, 2.0]}, r"\[1.0, 2.0\]"),
        ({"seq": 1, "keys": [-1.0] + [0] * 12}, "-1.0"),
        ({"seq": 1, "keys": [float("nan")] + [0] * 12}, "nan"),
        ({"seq": -1, "keys": []}, "-1"),
        ({"seq": 1, "keys": [], "speed": 99}, "99"),
    ],
)
def test_a_wrong_action_names_the_value_and_what_is_allowed(message, value):
    with pytest.raises(ValueError, match=rf"{value}.*(allowed are|allowed is|actions are)"):
        parse_action(message, WORLD, CFG, 1.0)


def test_a_chunk_takes_the_newest_action_and_holds_it():
    session = walk()
    session.act(7, row("dolly_in"), 0.1)
    assert session.take(4)[1] == [7] * 4
    assert session.take(4)[1] == [7] * 4


def test_a_tap_between_two_chunks_is_played_for_as_long_as_it_lasted():
    session = walk()
    session.act(1, row("dolly_in"), 0.10)
    session.act(2, row(), 0.10 + 2 / 16)
    actions, receipts = session.take(4)
    assert receipts == [1, 1, 2, 2]
    assert (actions[2] == static_row()).all()


def test_many_actions_leave_the_last_frame_to_the_newest():
    session = walk()
    for seq in range(1, 100):
        session.act(seq, row("dolly_in"), seq / 100)
    assert session.take(4)[1][-1] == 99


def test_receipts_belong_to_the_last_pictures_of_the_first_chunk():
    session = walk()
    session.act(5, row("dolly_in"), 0.0)
    chunk(session, 0.0)
    assert [picture.receipt for picture in session.pace.queue] == [0, 5, 5, 5, 5]
    assert [picture.still for picture in session.pace.queue] == [True, False, False, False, False]


def test_a_world_without_keys_rests_and_wakes_by_one():
    session = walk()
    assert not session.resting(0.9)
    assert session.resting(1.1)
    session.act(1, row("dolly_in"), 5.0)
    assert not session.resting(50.0)


@pytest.mark.parametrize(("now", "reason"), [(19.0, None), (21.0, "idle"), (101.0, "lifetime")])
def test_a_session_ends_when_it_is_idle_or_old(now, reason):
    found = walk().expiry(now)
    assert (found and found[0]) == reason


def test_a_held_key_is_not_idle():
    session = walk()
    session.act(1, row("dolly_in"), 0.0)
    assert session.expiry(90.0) is None


def test_a_lost_connection_lets_go_of_the_keys_and_keeps_the_lease():
    session = walk()
    session.act(1, row("dolly_in"), 0.0)
    session.take(4)
    session.detach(1, 1.0)
    assert session.still
    assert session.expiry(10.9) is None
    assert session.expiry(11.1)[0] == "lease"


def test_a_newer_connection_takes_over():
    session = walk()
    session.attach(1.0)
    session.detach(1, 2.0)
    assert session.attached


# --- pause ----------------------------------------------------------------------------------------------------------


def test_a_paused_world_rests_though_a_key_is_held():
    session = walk()
    session.act(1, row("dolly_in"), 0.0)
    assert not session.resting(9.0)
    session.pause()
    assert session.resting(9.0)
    assert session.expiry(21.0) == ("idle", "no key was pressed for 20 s; start another walk")


def test_a_resumed_world_goes_on_with_what_is_held():
    session = walk()
    session.act(1, row("dolly_in"), 0.0)
    session.pause()
    session.resume(9.0)
    assert not session.resting(9.0)
    assert session.take(4)[1] == [1] * 4


def test_a_key_resumes_and_letting_go_does_not():
    session = walk()
    session.act(1, row("dolly_in"), 0.0)
    session.pause()
    session.act(2, row(), 1.0)
    assert session.paused
    session.act(3, row("dolly_out"), 2.0)
    assert not session.paused
    assert session.take(4)[1] == [3] * 4


# --- back in time ---------------------------------------------------------------------------------------------------


def ways(session: Session) -> list[float]:
    return [seconds for seconds, _ in session.ways_back()]


def walked(num_chunks: int) -> Session:
    """A session whose pictures are shown as soon as they are made."""
    session = walk()
    for step in range(num_chunks):
        chunk(session, step / 4)
        session.pace.clear(step / 4)
        if session.wants_moment():
            assert session.walk is not None
            session.put_by(session.walk.branch())
    return session


def test_a_moment_is_kept_every_two_seconds_and_only_the_last_four():
    assert ways(walked(9)) == [2.0]
    assert ways(walked(10)) == [0.25, 2.25]
    assert ways(walked(50)) == [0.25, 2.25, 4.25, 6.25]


def test_the_way_back_is_counted_from_what_was_shown():
    session = walked(10)
    chunk(session, 9.0)
    assert ways(session) == [0.25, 2.25]
    session.begin(4)
    assert ways(session) == [0.25, 2.25]


def test_one_goes_back_to_the_nearest_moment_and_what_came_after_it_never_was():
    session = walked(50)
    sequence = session.pace.num_made
    seconds, moment = session.way_back(4.0)
    session.go_back(seconds, moment, moment.walk.branch(), 20.0)
    assert session.notices[-1] == {"type": "rewound", "seconds": 4.25, "sequence": sequence}
    assert session.pace.queue[0].sequence == sequence
    assert session.walk is not moment.walk
    assert ways(session) == [pytest.approx(2.0 - 1 / 16)]  # its own picture is yet to be shown


def test_without_a_moment_there_is_a_sentence():
    with pytest.raises(ValueError, match="no earlier moment yet; one is kept every 2 s"):
        walk().way_back(5.0)
