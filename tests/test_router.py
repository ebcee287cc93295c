"""The router over real servers: where walks go, and what people notice when a server goes."""

import asyncio
import base64
import contextlib
import io
import itertools
import json
import operator
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_world import FakeWorld, Place, serving
from PIL import Image
from starlette.websockets import WebSocket
from talk import closing, follow, hear, see, stream_url
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from relic.serve import client, limits, relay, router
from relic.serve.access import Access, Refused, read_secret
from relic.serve.client import ask, say
from relic.serve.config import Router
from relic.serve.fleet import Fleet, Replica, RouterMetrics
from relic.serve.listener import address, bind

SECRET = b"a secret that replicas and router share"


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("secret") / "secret"
    file.write_bytes(SECRET)
    return str(file)


@contextlib.contextmanager
def routing(secret: str, *places: str, **dials) -> Iterator[str]:
    """A real router to servers, on a free port, in a thread, once it has asked them all."""
    names = ",".join(place.removeprefix("http://") for place in places)
    cfg = Router(**{"replicas": names, "token_secret": secret, "port": 0, "ask_s": 0.1, **dials})
    with bind(cfg.host, cfg.port) as listener:
        server = router.make_server(cfg, read_secret(secret))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield address(listener)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def two(secret: str) -> Iterator[tuple[Place, Place, str]]:
    """Two servers and a router."""
    dials: dict[str, Any] = {"token_secret": secret, "slots": 3, "sessions_each": 9}
    with (
        serving(FakeWorld(), **dials) as one,
        serving(FakeWorld(), **dials) as other,
        routing(secret, one, other) as through,
    ):
        yield one, other, through


def post(place: str, **asked) -> httpx.Response:
    return httpx.post(f"{place}/v1/sessions", json=asked or {"example": "e0"})


def counts(*places: Place) -> list[int]:
    return [len(place.server.scheduler.sessions) for place in places]


# --- where walks go -------------------------------------------------------------------------------------------------


def test_new_walks_go_to_the_emptiest_server(two):
    one, other, through = two
    assert [post(through).status_code for _ in range(4)] == [201] * 4
    assert counts(one, other) == [2, 2]


def test_where_one_server_refuses_the_next_is_asked(secret):
    dials: dict[str, Any] = {"token_secret": secret, "slots": 2, "sessions_each": 9}
    with (
        serving(FakeWorld(), **dials) as one,
        serving(FakeWorld(), **dials) as other,
        routing(secret, one, other, ask_s=60.0) as through,  # what it knows of them is old soon
    ):
        assert [post(one).status_code for _ in range(2)] == [201] * 2
        assert [post(through).status_code for _ in range(2)] == [201] * 2
        assert counts(one, other) == [2, 2]
        full = post(through)
    assert full.status_code == 429
    assert "all 2 places are taken" in full.json()["error"]
    assert int(full.headers["retry-after"]) >= 2


def test_a_refusal_is_closed_when_the_next_server_does_not_answer(two, monkeypatch):
    through = two[2]
    answers: list[httpx.Response] = []
    forward = relay.Relay.forward

    async def once(*arguments: Any) -> httpx.Response:
        if answers:
            raise httpx.ReadTimeout("it does not answer")
        answers.append(await forward(*arguments))
        answers[0].status_code = 429
        return answers[0]

    monkeypatch.setattr(relay.Relay, "forward", once)
    assert post(through).status_code == 502
    assert answers[0].is_closed


def test_a_walk_is_walked_asked_and_ended_through_the_router(two):
    one, other, through = two
    with client.begin(through) as walk:
        receipt = walk.act("dolly_in")
        frame = next(frame for frame in walk.frames() if frame.receipt == receipt)
        assert frame.image.shape == (32, 48, 3)
        url, headers = f"{through}/v1/sessions/{walk.id}", {"authorization": f"Bearer {walk.token}"}
        assert walk.session["url"].startswith(through.replace("http", "ws"))
        with walk.branch() as branch:
            assert next(branch.frames()).sequence == 0
        assert httpx.get(url, headers=headers).json()["made"] > 0
        assert httpx.delete(url, headers=headers).status_code == 204
        assert [frame.sequence for frame in walk.frames()] != []  # to the end
        assert walk.over["reason"] == "deleted"
    assert counts(one, other) == [0, 0]
    assert httpx.get(url, headers=headers).json()["error"] == "this walk has ended: it was deleted"


def test_a_router_that_is_started_again_finds_every_walk(two, secret):
    one, other, through = two
    walks = [post(through).json() for _ in range(4)]
    with routing(secret, one, other) as again:
        for walk in walks:
            with connect(stream_url(again, walk)) as stream:
                say(stream, "hello", token=walk["token"])
                hear(stream, "ready")
                see(stream)


def test_one_callers_streams_without_a_hello_keep_nobody_else_out(two, secret):
    one, other, _ = two
    with routing(secret, one, other, sockets=8) as through, contextlib.ExitStack() as stack:
        walk = post(through).json()
        for _ in range(2):
            stack.enter_context(connect(stream_url(through, walk)))
        with pytest.raises(InvalidStatus) as error, connect(stream_url(through, walk)):
            pass
        assert error.value.response.status_code == 503
        with connect(stream_url(through, walk), source_address=("127.0.0.2", 0)) as stream:
            say(stream, "hello", token=walk["token"])
            hear(stream, "ready")


def test_one_callers_requests_keep_nobody_else_out(secret, monkeypatch):
    monkeypatch.setattr(router, "MOST_REQUESTS", 4)
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with (
        serving(FakeWorld(), token_secret=secret) as one,
        routing(secret, one) as through,
        httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as other,
        contextlib.ExitStack() as stack,
    ):
        host, port = through.removeprefix("http://").split(":")
        for _ in range(2):
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(head)
        time.sleep(0.2)
        said = httpx.get(f"{through}/v1/world").json()["error"]
        assert said == "2 requests are on their way already, 2 of them yours"
        assert other.get(f"{through}/v1/world").status_code == 200


@pytest.mark.parametrize("target", ["/#", "/web/../metrics", "/v1/sessions/%2e%2e/%1b"])
def test_a_target_is_asked_for_as_it_is(two, target):
    said = [raw(place, f"GET {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx") for place in (two[0], two[2])]
    assert said[0][:13] == said[1][:13] == b"HTTP/1.1 404 "


def test_a_length_beside_chunks_is_not_passed_on(two):
    head = "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n"
    body = 'Transfer-Encoding: chunked\r\n\r\n10\r\n{"example":"e0"}\r\n0\r\n\r\n'
    assert raw(two[2], head + body)[:12] == b"HTTP/1.1 201"


def raw(place: str, said: str) -> bytes:
    """The beginning of an answer to a request that no client would write."""
    host, port = place.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as line:
        line.sendall(said.encode())
        return line.recv(4096)


def test_what_a_browser_asks_for_a_friend_s_page_comes_through(secret):
    friend = {"origin": "https://friend.example"}
    with serving(FakeWorld(), token_secret=secret, origins=(friend["origin"],)) as one, routing(secret, one) as through:
        for path in ["/v1/sessions", "/v1/sessions/x/branch", "/v1/world"]:
            answer = httpx.options(f"{through}{path}", headers=friend)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, friend["origin"])


@pytest.mark.parametrize("host", ["a:99999", "[:]", "a b"])
def test_a_stream_by_a_host_that_is_none_is_refused(host):
    async def run() -> None:
        cfg, access, counted = (
            Router(replicas="127.0.0.1:9", token_secret="x"),
            Access({}, 60.0, SECRET),
            RouterMetrics(),
        )
        fleet = Fleet(cfg, access, counted)
        fleet.settle("x", Replica("127.0.0.1:9", 0.0))
        scope = {"type": "websocket", "headers": [(b"host", host.encode())], "raw_path": b"/x"}
        with pytest.raises(Refused, match="the header Host is not a name and a port"):
            await relay.Relay(cfg, access, fleet, counted).opened(WebSocket(scope, None, None), "x")  # type: ignore

    asyncio.run(run())


def test_every_answer_of_the_router_carries_the_headers_as_a_servers_does(two):
    _, _, through = two
    for method, path in [
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("POST", "/x"),
        ("POST", "/v1/sessions"),
        ("GET", "/"),
    ]:
        headers = httpx.request(method, f"{through}{path}").headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers.get_list("x-content-type-options") == ["nosniff"]
    with pytest.raises(InvalidStatus) as error, connect(through.replace("http", "ws") + "/v1/stream"):
        pass
    assert error.value.response.headers["x-content-type-options"] == "nosniff"


def test_a_stream_to_a_wrong_path_is_told_so(two):
    _, _, through = two
    with pytest.raises(InvalidStatus) as error, connect(through.replace("http", "ws") + "/v1/stream"):
        pass
    assert error.value.response.status_code == 404


def test_the_page_and_the_world_come_through(two):
    _, _, through = two
    assert httpx.get(through).text == (Path(router.__file__).parent / "web/index.html").read_text()
    assert httpx.get(f"{through}/v1/world").json()["recipe"] == "fake"
    picture = httpx.get(f"{through}/v1/examples/1.jpg")
    assert Image.open(io.BytesIO(picture.content)).size == (48, 32)
    assert httpx.get(f"{through}/nowhere").json()["error"].endswith("/nowhere': Not Found")


def test_a_wrong_method_is_refused_as_at_a_server(two):
    answer = httpx.post(f"{two[2]}/{'y' * 300}")
    assert answer.json()["error"] == f"POST '/{'y' * 55}...: Method Not Allowed"
    assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD", "OPTIONS"]


def test_an_image_that_is_not_kept_whole_goes_through_and_too_large_a_body_does_not(two, secret):
    one, other, through = two
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    assert len(buffer.getvalue()) > 2 * router.KEPT_BYTES
    assert post(through, image=base64.b64encode(buffer.getvalue()).decode()).status_code == 201
    with routing(secret, one, other, body_bytes=100_000) as narrow:
        answer = httpx.post(f"{narrow}/v1/sessions", content=b"x" * 200_000)
        assert (answer.status_code, answer.json()["error"]) == (413, "the body is larger than 100000 bytes")


def test_a_body_that_drips_is_refused_in_time(two, monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 0.5)
    host, _, port = two[2].removeprefix("http://").partition(":")
    head = b"POST /v1/sessions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n"
    began, said = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=0.05) as caller:
        caller.sendall(head)
        while not said and time.monotonic() < began + 5:
            caller.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                said = caller.recv(1000)
    assert said.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("wrong", ["{", b"hello", "x" * 9000, '{"type": "ping"}', '{"type": "hello"}'])
def test_a_wrong_hello_hears_the_same_from_the_router_as_from_a_server(two, wrong):
    said = []
    for place in (two[0], two[2]):
        with connect(stream_url(place, post(place).json())) as stream:
            stream.send(wrong)
            said.append(closing(stream))
    assert said[0] == said[1]
    assert said[0][1] in (4401, 4413, 4422)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_nobody_without_the_token_reaches_a_server(two):
    _, _, through = two
    walk = post(through).json()
    url = stream_url(through, walk)
    for hello, code in [({"token": walk["token"][:-2] + "xx"}, 4403), ({}, 4401)]:
        with connect(url) as stream:
            say(stream, "hello", **hello)
            assert closing(stream)[1] == code
    with connect(url) as stream:
        stream.send("{")
        assert closing(stream) == ("the message '{' is not JSON; allowed is an object with a type", 4422)
    token = Access({}, 60.0, SECRET).issue("nobody")
    with connect(url.replace(walk["id"], "nobody")) as stream:
        say(stream, "hello", token=token)
        assert closing(stream) == ("there is no session 'nobody'", 4404)
    said = httpx.get(f"{through}/metrics").text
    for status, reason in [(401, "unauthorized"), (403, "forbidden"), (422, "wrong_value")]:
        assert f'relic_router_refusals_total{{reason="{reason}",status="{status}"}} 1.0\n' in said


def test_without_a_server_that_is_ready_people_are_asked_to_come_again(secret):
    with bind("127.0.0.1", 0) as nobody, routing(secret, address(nobody), dead_s=0.2) as through:
        nobody.close()
        answer = post(through)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json()["error"] == "no server is ready; come again in a moment"
        assert httpx.get(f"{through}/readyz").status_code == 503
        assert httpx.get(f"{through}/healthz").status_code == 200


def test_a_caller_is_told_by_the_router_and_by_nobody_else(two, secret):
    one, other, through = two
    forged = Access({}, 60.0, b"another secret of enough characters").introduce("9.9.9.9")
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as caller:
        for place in (through, one):
            for header in (forged, "9.9.9.9"):
                caller.post(f"{place}/v1/sessions", json={"example": "e0"}, headers={"x-relic-caller": header})
    sessions = [*one.server.scheduler.sessions.values(), *other.server.scheduler.sessions.values()]
    assert len(sessions) == 4
    assert {session.principal for session in sessions} == {"127.0.0.2"}


def test_a_page_is_the_routers_own_and_none_of_another_site(two):
    through = two[2]
    for origin, status in [(through, 201), ("http://elsewhere", 403)]:
        answer = httpx.post(f"{through}/v1/sessions", json={"example": "e0"}, headers={"origin": origin})
        assert answer.status_code == status
    walk = post(through).json()
    with connect(stream_url(through, walk), origin="http://elsewhere") as stream:
        say(stream, "hello", token=walk["token"])
        assert closing(stream)[1] == 4403


def test_a_slow_reader_slows_nobody_else_and_its_pictures_wait_in_the_server(two, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    monkeypatch.setattr("fake_world.wall", lambda x, scale: noise)  # 15 kB a picture
    through = two[2]
    slow = post(through).json()
    with (
        connect(stream_url(through, slow), max_queue=1, close_timeout=0.1) as stuck,
        contextlib.ExitStack() as stack,
    ):
        say(stuck, "hello", token=slow["token"])
        say(stuck, "action", seq=1, keys=["pan_left"])
        walks = [stack.enter_context(client.begin(through)) for _ in range(2)]
        for walk in walks:
            walk.act("pan_left")
        seen, dropped = [], 0
        while not dropped or len(seen) < 80:  # the others go on while what waits for it is dropped
            seen.append([walk.frame(10.0).sequence for walk in walks])
            if not len(seen) % 20:
                dropped = ask("GET", f"{through}/v1/sessions/{slow['id']}", token=slow["token"])["dropped"]
            assert len(seen) < 2000
    assert all(np.all(np.diff(one) == 1) for one in np.transpose(seen))


@contextlib.contextmanager
def process(secret: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, which is killed at the end."""
    script = (
        "import time; from fake_world import FakeWorld, serving\n"
        f"with serving(FakeWorld(), token_secret={secret!r}, sessions_each=9) as place:\n"
        "    print(place, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as found:
        try:
            assert found.stdout
            yield found, found.stdout.readline().strip()
        finally:
            found.kill()


def test_a_killed_server_ends_its_own_walks_with_a_word_and_no_others(secret):
    with (
        serving(FakeWorld(), token_secret=secret) as stays,
        process(secret) as (server, place),
        routing(secret, stays, place) as through,
        contextlib.ExitStack() as stack,
    ):
        walks = [stack.enter_context(follow(through)) for _ in range(2)]
        walks.sort(key=lambda walk: walk[0]["id"] in stays.server.scheduler.sessions)
        (session, lost), (_, other) = walks
        for stream in (lost, other):
            say(stream, "action", seq=1, keys=["pan_left"])
            see(stream)
        server.send_signal(signal.SIGKILL)
        sequences = [see(other)[0]["sequence"] for _ in range(40)]
        assert sequences == list(range(sequences[0], sequences[0] + 40))
        assert closing(lost) == ("the server of this walk has died; start another one", 1000)
        headers = {"authorization": f"Bearer {session['token']}"}
        answer = httpx.get(f"{through}/v1/sessions/{session['id']}", headers=headers)
        assert answer.status_code == 410
        assert answer.json()["error"] == "the server of this walk has died; start another one"


@contextlib.contextmanager
def breaking() -> Iterator[str]:
    """A server that dies when it has said the head of its first answer."""
    about = {"process": "p", "name": "n", "ready": True, "draining": False, "slots": 1, "sessions": [], "export": "e"}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.command == "GET" else 201)
            self.end_headers()
            if self.path == "/v1/replica":
                self.wfile.write(json.dumps(about).encode())
            else:
                self.server.shutdown()
                self.server.server_close()
                time.sleep(3)

        do_POST = do_GET

        def log_message(self, *said: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"


def test_nobody_waits_for_the_rest_of_an_answer_of_a_server_that_has_died(secret):
    with breaking() as one, routing(secret, one) as through:
        assert httpx.post(f"{through}/v1/sessions", timeout=2).json()["error"].startswith("no server is ready")
    with breaking() as one, routing(secret, one) as through, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{through}/v1/world", timeout=2)


def test_nobody_waits_for_a_server_that_hangs_longer_than_it_counts_as_alive(secret):
    with (
        serving(FakeWorld(), token_secret=secret) as stays,
        process(secret) as (server, place),
        routing(secret, stays, place, dead_s=0.5) as through,
    ):
        walks = [post(through).json() for _ in range(2)]
        walks.sort(key=lambda walk: walk["id"] in stays.server.scheduler.sessions)
        headers = {"authorization": f"Bearer {walks[0]['token']}"}
        with connect(stream_url(through, walks[0])) as stream, ThreadPoolExecutor() as callers:
            say(stream, "hello", token=walks[0]["token"])
            hear(stream, "ready")
            server.send_signal(signal.SIGSTOP)
            asked = callers.submit(httpx.get, f"{through}/v1/sessions/{walks[0]['id']}", headers=headers, timeout=20)
            assert closing(stream) == ("the server of this walk has died; start another one", 1000)
            assert asked.result().status_code == 410
        assert post(through).status_code == 201


# --- a server that closes -------------------------------------------------------------------------------------------


def test_walks_of_a_server_that_closes_go_on_at_the_other(secret, tmp_path):
    dials: dict[str, Any] = {"token_secret": secret, "slots": 3, "sessions_each": 9, "snapshots": str(tmp_path)}
    with (
        serving(FakeWorld(), **dials) as one,
        serving(FakeWorld(), **dials) as other,
        routing(secret, one, other) as through,
        contextlib.ExitStack() as stack,
    ):
        walks = [stack.enter_context(client.begin(through)) for _ in range(4)]
        before = [walked(walk, 10) for walk in walks]
        assert counts(one, other) == [2, 2]
        one.server.handle_exit(signal.SIGTERM, None)
        with ThreadPoolExecutor() as readers:
            after = list(readers.map(lambda walk: walked(walk, 60), walks))
        # only three of the four have a place at the other: one stays as long as its server does
        assert sorted(walk.num_lost for walk in walks) == [0, 0, 0, 1]
        assert counts(one, other) == [1, 3]
        for seen in map(operator.add, before, after):
            assert seen == list(range(len(seen)))


def walked(walk: client.Walk, num_frames: int) -> list[int]:
    """The next frames' numbers, while the camera turns."""
    walk.act("pan_left")
    return [frame.sequence for frame in itertools.islice(walk.frames(), num_frames)]


def test_without_snapshots_walks_end_with_their_server(secret):
    with (
        serving(FakeWorld(), token_secret=secret, drain_s=0.5) as one,
        routing(secret, one) as through,
        client.begin(through) as walk,
    ):
        walked(walk, 5)
        one.server.handle_exit(signal.SIGTERM, None)
        list(walk.frames())
        assert (walk.over["reason"], walk.over["message"]) == ("closing", "the server has closed")


# --- the router itself ----------------------------------------------------------------------------------------------


def test_the_router_counts_servers_walks_and_streams(two):
    through = two[2]
    with client.begin(through) as walk:
        assert next(walk.frames()).sequence == 0
        post(f"{through}/nowhere")
        said = httpx.get(f"{through}/metrics").text
    assert "relic_router_replicas_ready 2.0\n" in said
    assert "relic_router_streams_open 1.0\n" in said
    assert sum(line.endswith(" 1.0") for line in said.splitlines() if line.startswith("relic_router_sessions{")) == 1


def test_a_server_with_another_secret_is_not_led_to(two, tmp_path, caplog):
    one, other, _ = two
    file = tmp_path / "other"
    file.write_bytes(SECRET[::-1])
    with routing(str(file), one, other) as through:
        assert post(through).status_code == 503
    assert "answers 403" in caplog.text


@pytest.mark.parametrize(
    ("dials", "sentence"),
    [
        ({"replicas": "relic"}, "replicas is 'relic'; it must be NAME:PORT, or several between commas"),
        ({"replicas": "a:1,"}, "replicas is 'a:1,'"),
        ({"token_secret": ""}, "token_secret is empty"),
        ({"ask_s": 0.0}, "must all be above 0 seconds"),
    ],
)
def test_wrong_options_are_one_sentence(dials, sentence):
    with pytest.raises(ValueError, match=sentence):
        Router(**{"replicas": "a:1,[::1]:2", "token_secret": "x", **dials})
    assert Router(replicas="a:1,[::1]:2", token_secret="x").addresses == (("a", 1), ("::1", 2))


def test_a_router_may_open_as_many_files_as_the_machine_allows(secret) -> None:
    script = (
        "import resource, sys; from relic.serve import router; from relic.serve.config import Router\n"
        "limit, most = resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(limit, (100, most))\n"
        "router.make_server = lambda *_: sys.exit(resource.getrlimit(limit) != (most, most))\n"
        f"router.main(Router(replicas='a:1', token_secret={secret!r}, port=0))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


def test_router_client_and_play_load_no_torch() -> None:
    script = "import sys, relic.serve.router, relic.serve.client, relic.serve.play\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
