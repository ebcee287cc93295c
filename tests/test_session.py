"""One session's bookkeeping: which actions a chunk takes, when pictures are shown and when it ends."""

import numpy as np
import pytest
from fake_world import TRAINED

from relic.geometry.actions import ACTIONS, STATIC
from relic.serve.config import Serve
from relic.serve.session import Session, static_row
from relic.serve.wire import parse_action

CFG = Serve(run="fake", rest_s=1.0, idle_s=20.0, session_s=100.0, lease_s=10.0)
WORLD = dict.fromkeys(TRAINED, 1.0) | {"pan_right": 4.0}


class FourFrames:
    num_actions, decode_s = 4, 0.0

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("bookkeeping steps no walk")


def walk(now: float = 0.0) -> Session:
    session = Session(
        principal="me", image=np.zeros((8, 8, 3), np.uint8), caption="", seed=0, speed=1.0, cfg=CFG, fps=16.0, now=now
    )
    session.walk = FourFrames()
    session.attach(now)
    return session


def row(*names: str) -> np.ndarray:
    return parse_action({"seq": 0, "keys": list(names)}, WORLD, CFG, 1.0)[1]


def chunk(session: Session, now: float, count: int = 4) -> None:
    _, receipts = session.take(count)
    session.deliver([(b"jpeg", np.eye(4))] * count, receipts, now=now, made_ms=0.0)


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


def test_pictures_are_shown_at_the_worlds_rate():
    session = walk()
    chunk(session, 1.0)
    assert session.next_picture(0.9) is None
    assert [session.next_picture(1.0 + k / 16).sequence for k in range(4)] == [0, 1, 2, 3]
    assert session.next_picture(9.0) is None


def test_a_chunk_never_starts_while_more_than_one_waits():
    session = walk()
    session.turnaround_s = 0.2
    chunk(session, 0.0)
    waiting_s = session.shown_until - session.starts_at()
    assert 0 < waiting_s <= 4 / 16


def test_a_fast_engine_starts_late_so_that_keys_are_fresh():
    session = walk()
    session.turnaround_s = 0.01
    chunk(session, 0.0)
    assert session.starts_at() == pytest.approx(4 / 16 - 0.0125 - 1 / 16)


def test_a_slow_engine_spreads_its_pictures_evenly():
    session = walk()
    for step in range(20):
        chunk(session, float(step))
    dues = [picture.due for picture in session.queue]
    assert np.diff(dues) == pytest.approx(0.25, abs=0.01)


def test_when_nobody_takes_pictures_the_oldest_are_dropped():
    session = walk()
    for step in range(5):
        chunk(session, step / 4)
    assert [picture.sequence for picture in session.queue] == list(range(12, 20))
    assert session.num_dropped == 12


def test_receipts_belong_to_the_last_pictures_of_a_chunk():
    session = walk()
    session.act(5, row("dolly_in"), 0.0)
    _, receipts = session.take(4)
    session.deliver([(b"", np.eye(4))] * 5, receipts, now=0.0, made_ms=0.0)
    assert [picture.receipt for picture in session.queue] == [0, 5, 5, 5, 5]
    assert [picture.still for picture in session.queue] == [True, False, False, False, False]


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
