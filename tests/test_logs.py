"""The log: what it says of a session, and that nothing secret is in it, whatever happens."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_world import FakeWorld, serving
from talk import closing, follow, see
from test_api import encoded

from relic.serve import logs
from relic.serve.client import say

KEY, PROMPT = "correct-horse-battery-staple", "a-prompt-that-nobody-else-shall-read"


@contextlib.contextmanager
def logged(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """All that the process logs, but for the tests' own requests."""
    written, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(written), root.level
    handler.setFormatter(formatter)
    handler.addFilter(lambda record: not record.name.startswith("http"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield written
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def busy(place: str) -> tuple[set[str], str]:
    """Everything that can happen to a server in a second; what it was told in secret, and a session's id."""
    head = {"authorization": f"Bearer {KEY}"}
    picture = encoded()
    with follow(place, key=KEY, image=picture, prompt=PROMPT) as (session, stream):
        say(stream, "action", seq=1, keys=["dolly_in"])
        see(stream)
        say(stream, "hello", token=session["token"])
        stream.send(PROMPT)
        say(stream, PROMPT)
        say(stream, "bye")
        closing(stream)
    wrong: list[dict] = [{"example": PROMPT}, {"prompt": 7, "image": picture}, {"image": picture[:60]}, {PROMPT: 1}]
    for body in wrong:
        assert httpx.post(f"{place}/v1/sessions", json=body, headers=head).status_code == 422
    for method, path in (("GET", session["id"]), ("GET", PROMPT), ("DELETE", session["id"])):
        for said in (KEY, KEY + "x", session["token"], session["token"] + "x"):
            httpx.request(method, f"{place}/v1/sessions/{path}", headers={"authorization": f"Bearer {said}"})
    httpx.get(f"{place}/{PROMPT}?key={KEY}")
    with follow(place, key=KEY, example="e0", prompt="broken") as (_, stream):
        closing(stream)
    return {KEY, PROMPT, picture[:40], session["token"], session["token"].split(".")[1]}, session["id"]


@pytest.mark.parametrize("formatter", [logs.Json(), logs.Text("%(name)s %(message)s")])
def test_nothing_secret_is_logged(formatter):
    with logged(formatter) as written, serving(FakeWorld(), {KEY: "ann"}) as place:
        secrets, identity = busy(place)
    assert all(secret not in written.getvalue() for secret in secrets)
    assert identity in written.getvalue()
    assert "the kernel is broken" in written.getvalue()


def test_a_sessions_records_are_found_by_its_id():
    with logged(logs.Json()) as written, serving(FakeWorld(), {KEY: "ann"}) as place:
        _, identity = busy(place)
    records = [json.loads(line) for line in written.getvalue().splitlines()]
    begun, ended = (record for record in records if record.get("session") == identity)
    (failed,) = (record for record in records if record["event"] == "session failed")
    assert (begun["event"], begun["principal"], begun["level"]) == ("session begun", "ann", "info")
    assert (ended["event"], ended["reason"]) == ("session ended", "bye")
    assert ended["frames"] >= 1
    assert {("refused", 403), ("refused", 410), ("refused", 422)} <= {(r["event"], r.get("status")) for r in records}
    assert "RuntimeError: the kernel is broken" in failed["error"]
    assert failed["session"] in {record.get("session") for record in records if record["event"] == "session begun"}


@pytest.mark.parametrize(("kind", "line"), [("text", "relic.serve walked session=7"), ("json", '"session": 7}')])
def test_a_process_logs_as_it_is_told(kind, line):
    script = f"from relic.serve import logs; logs.configure({kind!r}); logs.note('walked', session=7)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stderr.rstrip().endswith(line)


NOISY = """
import socket
from fake_world import FakeWorld, serving
from relic.serve import logs
KEY = "Upgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n"
STREAM = f"GET /v1/sessions/x/stream HTTP/1.1\\r\\nHost: x\\r\\nConnection: Upgrade\\r\\n{KEY}\\r\\n"
logs.configure("text")
with serving(FakeWorld()) as place:
    host, port = place.removeprefix("http://").split(":")
    h2c = STREAM.replace("websocket", "h2c")
    foreign = STREAM.replace("Host: x", "Host: x\\r\\nOrigin: http://elsewhere")
    for said in ["no request\\r\\n\\r\\n", h2c, foreign, STREAM] * 5:
        with socket.create_connection((host, int(port)), 1) as line:
            line.sendall(said.encode())
            line.recv(4096)
            if said == STREAM:
                line.sendall(bytes([129, 129, 0, 0, 0, 0, 255]))
                line.recv(4096)
"""


def test_what_callers_do_wrong_fills_no_log():
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    said = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    lines = said.stderr.splitlines()
    assert all("warm" in line or "refused" in line for line in lines), said.stderr
    assert 1 <= sum("refused status=403 reason=origin" in line for line in lines) < 5
