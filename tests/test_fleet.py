"""What a router knows of its replicas, told to it without a network."""

import asyncio
import errno
import time

import httpx
import pytest

from relic.serve.access import Access, Refused
from relic.serve.config import Router
from relic.serve.fleet import ANSWER_S, Fleet, Replica, RouterMetrics
from relic.serve.moving import Mover

CFG = Router(replicas="nowhere:1", token_secret="x")
ACCESS = Access({}, 60.0, b"a secret of more than 32 characters!")
EXPORT, OTHER = "0f5d9fe3a7c1b2d4e6f8", "1" * 20


def told(**said) -> dict:
    return {"process": said.get("name", "a"), "name": "a", "ready": True, "draining": False, "slots": 4, "active": 0,
            "sessions": [], "export": EXPORT, **said}  # fmt: skip


@pytest.fixture
def fleet() -> Fleet:
    found = Fleet(CFG, ACCESS, RouterMetrics())
    found.http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(500)))
    return found


def add(fleet: Fleet, name: str, **said) -> Replica:
    replica = fleet.replicas[name] = Replica(name, 0.0)
    fleet.hear(replica, told(name=name, **said))
    return replica


def sought(fleet: Fleet, identity: str) -> str:
    async def seek() -> str:
        fleet.asking = asyncio.create_task(asyncio.sleep(0))  # all have been asked
        return (await fleet.seek(identity)).name

    return asyncio.run(seek())


def test_the_emptiest_comes_first_and_the_full_last(fleet: Fleet) -> None:
    add(fleet, "full", slots=1, sessions=["x"])
    add(fleet, "half", sessions=["y", "z"])
    add(fleet, "big", slots=40, sessions=[f"s{i}" for i in range(10)])
    add(fleet, "busy", draining=True)
    add(fleet, "cold", ready=False)
    assert [one.name for one in fleet.by_load()] == ["big", "half", "full"]
    fleet.replicas["big"].coming = 11  # asked for and not answered yet
    assert [one.name for one in fleet.by_load()] == ["half", "big", "full"]


def test_equals_are_taken_by_chance(fleet: Fleet) -> None:
    for name in "abc":
        add(fleet, name)
    assert {fleet.by_load()[0].name for _ in range(100)} == set("abc")


def test_a_walk_is_found_where_it_is_listed(fleet: Fleet) -> None:
    add(fleet, "a", sessions=["0f5d9fe3.one"])
    add(fleet, "b", sessions=["0f5d9fe3.two"])
    assert [sought(fleet, f"0f5d9fe3.{name}") for name in ("one", "two")] == ["a", "b"]


def test_a_walk_that_ended_is_asked_for_where_it_was(fleet: Fleet) -> None:
    replica = add(fleet, "a", sessions=["0f5d9fe3.one"])
    add(fleet, "b")
    fleet.hear(replica, told(name="a"))
    assert sought(fleet, "0f5d9fe3.one") == "a"


def test_a_walk_that_left_a_draining_server_goes_to_one_of_the_same_export(fleet: Fleet) -> None:
    replica = add(fleet, "a", sessions=["0f5d9fe3.one"])
    add(fleet, "new", export=OTHER)
    add(fleet, "same")
    fleet.hear(replica, told(name="a", draining=True, sessions=["0f5d9fe3.one"]))
    assert sought(fleet, "0f5d9fe3.one") == "a"  # it is still there
    fleet.leave("0f5d9fe3.one", replica)
    assert sought(fleet, "0f5d9fe3.one") == "same"
    fleet.bury(replica, "refused")
    assert sought(fleet, "0f5d9fe3.one") == "same"
    assert sought(fleet, "0f5d9fe3.of-another-router") == "same"


def test_a_walk_that_moved_is_not_looked_for_where_it_left(fleet: Fleet) -> None:
    replica = add(fleet, "a", sessions=["0f5d9fe3.one"])
    add(fleet, "b")
    fleet.leave("0f5d9fe3.one", replica)  # before it was heard that the server drains
    assert sought(fleet, "0f5d9fe3.one") == "b"
    fleet.bury(replica, "refused")
    assert sought(fleet, "0f5d9fe3.one") == "b"


def test_a_server_that_loads_for_long_is_complained_of_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("nothing is answered until the export is loaded")

    fleet.http = httpx.AsyncClient(transport=httpx.MockTransport(silent))
    for _ in range(3):  # it is buried each time, and its name has the address still
        loading = fleet.replicas["a:1"] = Replica("a:1", -1e9)
        asyncio.run(fleet.ask(loading))
    assert loading.gone.is_set()
    assert [record.getMessage() for record in caplog.records] == ["a replica at a:1 does not answer: ReadTimeout"]
    fleet.hear(Replica("a:1", 0.0), told())
    assert not fleet.complaints


@pytest.mark.parametrize(
    ("said", "lost"), [({"sessions": ["x", "y"]}, 2), ({}, 0), ({"sessions": ["x"], "draining": True}, 0)]
)
def test_walks_that_die_with_their_server_are_counted(fleet: Fleet, said: dict, lost: int, caplog) -> None:
    fleet.bury(add(fleet, "a", **said), "refused")
    assert f"relic_router_lost_total {lost:.1f}\n".encode() in fleet.metrics.show([])
    assert ("has died with 2 walks" if lost else "a at a has left") in caplog.text


@pytest.mark.parametrize(
    ("draining", "sentence"),
    [
        (False, "the server of this walk has died; start another one"),
        (True, "the server of this walk has closed, and no other has its world; start another one"),
    ],
)
def test_a_walk_whose_server_is_gone_is_told_so(fleet: Fleet, draining: bool, sentence: str) -> None:
    replica = add(fleet, "a", sessions=["0f5d9fe3.one"], draining=draining)
    add(fleet, "new", export=OTHER)
    fleet.bury(replica, "refused")
    with pytest.raises(Refused, match=sentence) as refused:
        sought(fleet, "0f5d9fe3.one")
    assert refused.value.status == 410


def test_an_unknown_walk_is_refused_and_without_a_server_people_come_again(fleet: Fleet) -> None:
    with pytest.raises(Refused, match="no server is ready"):
        sought(fleet, "99999999.one")
    add(fleet, "a")
    with pytest.raises(Refused, match=r"there is no session '99999999.one'"):
        sought(fleet, "99999999.one")


def test_another_process_at_an_address_is_another_replica(fleet: Fleet) -> None:
    before = add(fleet, "a", sessions=["0f5d9fe3.one"])
    fleet.hear(before, told(name="b"))
    assert before.gone.is_set()
    assert fleet.replicas["a"].name == "b"
    with pytest.raises(Refused, match="has died"):
        sought(fleet, "0f5d9fe3.one")


def test_a_server_that_was_started_again_in_its_place_has_lost_its_walks(fleet: Fleet) -> None:
    before = add(fleet, "a", sessions=["0f5d9fe3.one"])
    fleet.hear(before, told(name="a", process="again"))  # a container keeps its pod's name
    assert before.gone.is_set()
    with pytest.raises(Refused, match="has died"):
        sought(fleet, "0f5d9fe3.one")


def test_what_a_server_that_is_gone_still_says_is_no_news(fleet: Fleet) -> None:
    before = add(fleet, "a", sessions=["0f5d9fe3.one"])
    fleet.hear(before, told(name="a", process="again"))
    after = fleet.replicas["a"]
    fleet.hear(before, told(name="a", process="again"))  # the answer to another question of that moment
    assert fleet.replicas["a"] is after


@pytest.mark.parametrize(("number", "gone"), [(errno.EMFILE, False), (errno.ECONNREFUSED, True)])
def test_a_router_without_files_does_not_take_servers_for_dead(fleet: Fleet, number: int, gone: bool) -> None:
    def fails(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("All connection attempts failed") from OSError(number, "")

    fleet.http = httpx.AsyncClient(transport=httpx.MockTransport(fails))
    replica = add(fleet, "a", sessions=["0f5d9fe3.one"])
    asyncio.run(fleet.ask(replica))
    assert (replica.gone.is_set(), replica.ready) == (gone, not gone)


def test_silence_is_death_only_after_a_while(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("relic.serve.fleet.time.monotonic", lambda: now[0])
    replica = add(fleet, "a", sessions=["0f5d9fe3.one"])
    asyncio.run(fleet.ask(replica))
    assert (replica.ready, replica.gone.is_set(), list(fleet.replicas)) == (False, False, ["a"])
    now[0] += CFG.dead_s + 1
    asyncio.run(fleet.ask(replica))
    assert (replica.gone.is_set(), list(fleet.replicas)) == (True, [])


def test_a_slot_is_kept_for_a_walk_on_its_way(fleet: Fleet) -> None:
    leaving = add(fleet, "a", draining=True, sessions=["0f5d9fe3.one", "0f5d9fe3.two"])
    other = add(fleet, "b", slots=2, sessions=["0f5d9fe3.three"])
    mover = Mover(CFG, ACCESS, fleet, RouterMetrics())
    assert mover.room(leaving) == 1
    mover.on_the_way["0f5d9fe3.one"] = 1e12
    assert mover.room(leaving) == 0
    fleet.leave("0f5d9fe3.one", leaving)
    assert mover.room(leaving) == 0
    fleet.settle("0f5d9fe3.one", other)  # it has come
    other.slots = 3
    assert mover.room(leaving) == 1


def test_a_walk_that_does_not_move_yet_holds_up_no_other(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = add(fleet, "a", draining=True, sessions=["0f5d9fe3.arriving", "0f5d9fe3.here"])
    add(fleet, "b")
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=told(name="a", draining=True, sessions=sorted(leaving.sessions)))
        asked.append(request.url.path.split("/")[3])
        if asked[-1] == "0f5d9fe3.here":
            leaving.sessions.discard(asked[-1])
        return httpx.Response(202 if asked[-1] == "0f5d9fe3.here" else 404)

    fleet.http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    metrics = RouterMetrics()
    mover = Mover(CFG, ACCESS, fleet, metrics)

    async def run() -> None:
        emptying = asyncio.create_task(mover.empty(leaving))
        await asyncio.sleep(0.5)
        emptying.cancel()

    asyncio.run(run())
    assert asked[:2] == ["0f5d9fe3.arriving", "0f5d9fe3.here"]
    assert len(asked) < 10
    assert b"relic_router_moved_total 1.0\n" in metrics.show([])


def test_a_server_is_emptied_further_when_something_has_failed(fleet: Fleet, monkeypatch, caplog) -> None:
    leaving = add(fleet, "a", draining=True, sessions=["0f5d9fe3.one"])
    add(fleet, "b")
    failing, asked = ["nobody thought of it"], []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if failing:
            raise KeyError(failing.pop())
        return httpx.Response(409)

    monkeypatch.setattr("relic.serve.moving.AGAIN_S", 0.0)
    fleet.http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    asyncio.run(Mover(CFG, ACCESS, fleet, RouterMetrics()).empty(leaving))
    assert asked == ["/v1/sessions/0f5d9fe3.one/move"] * 2
    assert "nobody thought of it" in caplog.text


@pytest.mark.parametrize("busy", [False, True])
def test_a_router_that_is_out_of_breath_takes_silence_for_no_death(fleet: Fleet, busy: bool) -> None:
    async def toil() -> None:
        while True:
            time.sleep(ANSWER_S / 25)
            await asyncio.sleep(0)

    async def ask() -> None:
        toiling = asyncio.create_task(toil()) if busy else None
        await fleet.ask(replica)
        if toiling:
            toiling.cancel()

    replica = add(fleet, "a")
    replica.heard = -1e9
    fleet.http = httpx.AsyncClient(transport=httpx.MockTransport(unheard))
    asyncio.run(ask())
    assert (replica.gone.is_set(), replica.ready) == (not busy, busy)


def unheard(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("", request=request)
