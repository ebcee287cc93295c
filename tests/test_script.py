"""Scripts of actions."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from relic.generate import script
from relic.geometry.actions import ACTIONS

PAGE = Path(script.__file__).parents[1] / "serve" / "web" / "keys.js"


def test_keys_are_those_of_the_page() -> None:
    rows = re.findall(r'\["(\w+)", "(?:Key|Arrow)(\w+)"', PAGE.read_text())
    assert {code.lower(): action for action, code in rows} | {"still": "static"} == script.KEYS
    assert set(script.KEYS.values()) == set(ACTIONS)


def test_keys_are_held_one_after_another() -> None:
    assert script.parse("w 2s, left 1s, w+left 0.5s", 16) == [
        (("dolly_in",), 32),
        (("pan_left",), 16),
        (("dolly_in", "pan_left"), 8),
    ]


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ("w 8f", ("dolly_in",)),
        ("W .5 S", ("dolly_in",)),
        ("dolly_in 0.5s", ("dolly_in",)),
        ("w + up 8 f", ("dolly_in", "tilt_up")),
        ("still 0.5s", ()),
    ],
)
def test_a_part_may_be_written_in_several_ways(said: str, held: tuple[str, ...]) -> None:
    assert script.parse(said, 16) == [(held, 8)]


def test_seconds_are_rounded_to_whole_frames() -> None:
    assert [script.parse(f"w {s}s", 16)[0].num_frames for s in (0.04, 0.1, 1.04)] == [1, 2, 17]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("w 2s, lfet 1s", "there is no key 'lfet'; did you mean 'left'? allowed are w, s, a, d, r, f, up, down, left"),
        ("w", "the actions hold 'w'; allowed are keys and how long, such as 'w 2s'"),
        ("", "the actions hold ''; allowed are keys and how long"),
        ("w 2s,", "the actions hold ''; allowed are keys and how long"),
        ("w -1s", "the actions hold 'w -1s'; allowed are keys and how long"),
        ("w 2m", "the actions hold 'w 2m'; allowed are keys and how long"),
        ("w+ 1s", "the actions hold 'w+ 1s'; allowed are keys and how long"),
        ("w 0.01s", "the actions hold 'w 0.01s'; allowed is a whole number of frames, or at least one frame's time"),
        ("w 1.5f", "the actions hold 'w 1.5f'; allowed is a whole number of frames"),
    ],
)
def test_a_mistake_says_what_is_allowed(said: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        script.parse(said, 16)


def test_a_script_is_read_without_torch() -> None:
    code = "import sys, relic.generate.script\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
