"""`relic play`: a walk by a script or by a terminal's keys."""

import contextlib
import io
import os
import pty
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_world import FakeWorld, Place, serving
from PIL import Image

from relic import __main__ as command
from relic.data import video
from relic.serve import play
from relic.serve.config import Play


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving(FakeWorld()) as found:
        yield found


def test_a_script_becomes_a_video_of_its_length(place, tmp_path, capsys):
    out = tmp_path / "deep" / "walk.mp4"
    assert command.main(["play", place, "--script", "w 0.5s, left 8f, still 0.2s", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    num_frames = len(video.Reader(out).timestamps)
    assert 40 * 0.8 < num_frames < 40 * 1.6
    assert f"{out}: {num_frames + 1} pictures, " in said  # and the one that shows the end
    assert said.endswith("ms from a key to its picture; 0 dropped, 0 connections lost\n")


def test_a_folder_takes_a_file_a_frame(place, tmp_path):
    assert command.main(["play", place, "--script", "w 0.3s", "--out", str(tmp_path / "f"), "--format", "webp"]) == 0
    files = sorted((tmp_path / "f").iterdir())
    assert files[0].name == "000000.webp"
    with Image.open(files[-1]) as image:
        assert (image.format, image.size) == ("WEBP", (48, 32))


def test_no_frame_stays_in_memory_when_it_was_recorded(place, tmp_path, monkeypatch):
    seen, left = [], []
    monkeypatch.setattr(play.Meter, "see", lambda self, frame, now: seen.append(weakref.ref(frame)))

    @contextlib.contextmanager
    def recording(path, fps):
        yield lambda image, at: left.append(sum(frame() is not None for frame in seen))

    play.main(Play(address=place, script="w 1s", out=str(tmp_path / "walk.mp4")), recording)
    assert len(left) > 20
    assert max(left) <= 2


def test_a_walk_that_ends_amid_a_script_is_no_failure(tmp_path, capsys):
    with serving(FakeWorld(), session_s=0.6) as short:
        script = ["--script", "w 0.2s, left 0.8s, w 0.2s", "--out", str(tmp_path / "walk.mp4")]
        assert command.main(["play", short, *script]) == 0
    assert "it ended: a walk lasts at most 0.6 s; start another one" in capsys.readouterr().out
    assert len(video.Reader(tmp_path / "walk.mp4").timestamps) > 10


def test_keys_of_a_terminal_walk(place):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    line = [sys.executable, "-m", "relic", "play", place]
    with subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        while b"pictures a second" not in said:
            said += os.read(ours, 1 << 16)
        os.write(ours, b"w\x1b[D")
        while b"dolly_in + pan_left" not in said and time.sleep(0.01) is None:
            said += os.read(ours, 1 << 16)
        os.write(ours, b"\x04")
        while b"connections lost" not in said:
            said += os.read(ours, 1 << 16)
        assert process.wait(10) == 0
    os.close(ours)
    assert "▀".encode() in said


def test_an_arrow_is_one_key():
    assert play.keys_of("w\x1b[AW \x1b[D\x7f") == ["w", "\x1b[A", "w", " ", "\x1b[D", "\x7f"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["http://127.0.0.1:1", "--script", "w 1s"], "nobody answers at http://127.0.0.1:1; "),
        (["127.0.0.1:8000"], "address is '127.0.0.1:8000'; it must be a server's, such as http://127.0.0.1:8000"),
        (["http://x", "--format", "gif"], "format is 'gif'; allowed are jpeg and webp"),
        ([], "relic play needs --address"),
    ],
)
def test_a_mistake_is_one_sentence(args, sentence, capsys):
    assert command.main(["play", *args]) == 2
    assert sentence in capsys.readouterr().err


def test_a_server_with_keys_says_how_play_takes_one(capsys, monkeypatch):
    monkeypatch.delenv(play.KEY, raising=False)
    with serving(FakeWorld(), {"k" * 16: "someone"}) as locked:
        assert command.main(["play", locked, "--script", "w 1s"]) == 2
    assert "asks for an API key; give --key-file FILE, or the key in RELIC_API_KEY" in capsys.readouterr().err


def test_without_a_terminal_a_script_is_asked_for(place, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert command.main(["play", place]) == 2
    assert "there is no terminal whose keys could be read; give --script" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image", "nope.png"], "image is 'nope.png', which is no file"),
        (["--key-file", "nope"], "key_file is 'nope', which is no file"),
        (["--example", "zzz"], "there is no example 'zzz'"),
        (["--speed", "9"], "speed is 9.0; allowed is above 0 and at most 2.5"),
        (["--out", "walk.avi"], "out is 'walk.avi'; it must end in .mp4, or be a folder without an ending"),
        (["--script", "e 1s"], "the script has 'roll_cw'; this world's actions are dolly_in"),
    ],
)
def test_a_mistake_is_a_sentence(place, options, said, capsys):
    assert command.main(["play", place, "--script", "w 1s", *options]) == 2
    assert said in (found := capsys.readouterr().err)
    assert found.count("\n") == 1
