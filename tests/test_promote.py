"""The deployment: gate, registry, a session against a real server, and the alias that moves last and back."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import GOOD, export, inputs
from fake_world import FakeWorld, Place, serving, wall
from tiny_models import transformer

from relic import artifacts, steps, stores, tracking
from relic.launch import promote, visit
from relic.launch.config import Deploy, Threshold
from relic.mistakes import UserError
from relic.serve import client
from relic.tracking import Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow.*")  # MLflow's own use of SQLAlchemy

WIN_RATE = Threshold(metric="models.student.action_win_rate", at_least=0.8)
CFG = Deploy(gate=(Threshold(metric="models.student.psnr_gain_over_still_db", at_least=0.0), WIN_RATE), pictures=24)
SESSION = {"latency_p50_ms": 100.0, "pictures": 24, "pictures_per_s": 16.0, "change": 5.0}


class Exported:
    """Exports of one store, and deployments of them into one registry; every test has a registered model of its own."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.registry = tracking.Server(tracking.default_uri(store)).client

    def deploy(self, cfg: Deploy, *, figures: dict = GOOD, student: Any = None, name: str = "") -> dict:
        given = inputs(self.store, student, figures, name)
        out = self.store / "deploy" / f"{cfg.model}.partial"
        out.mkdir(parents=True, exist_ok=True)
        export_uri = [export(self.store, given)]
        promote.main(cfg, export=export_uri, evaluation=given["evaluation"], out=out, run=Run.silent())
        return artifacts.read_json(out / "deploy.json")

    def step(self, cfg: Deploy, name: str) -> str:
        """The same as a step, which is cached."""
        given = inputs(self.store, transformer(seed=len(name)), GOOD, name)
        uris = {"export": [export(self.store, given)], "evaluation": given["evaluation"]}
        return steps.perform(steps.STEPS["deploy"], cfg, store=str(self.store), inputs=uris)

    def alias(self, cfg: Deploy) -> str | None:
        found = self.registry.get_registered_model(cfg.model).aliases.get(cfg.alias)
        return None if found is None else str(found)

    def versions(self, cfg: Deploy) -> list[Any]:
        return self.registry.search_model_versions(f"name='{cfg.model}'")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    folder = tmp_path_factory.mktemp("deploy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(tracking.PARENT, tracking.RUNNER)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Exported(folder / "store")


@contextlib.contextmanager
def sessions_go_well() -> Iterator[None]:
    """Deployments without a server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promote, "serving", lambda *_, **__: contextlib.nullcontext("http://nowhere"))
        patch.setattr(visit, "play", lambda *_, **__: SESSION)
        yield


@pytest.fixture
def no_server() -> Iterator[None]:
    with sessions_go_well():
        yield


# The gate


@pytest.mark.parametrize(
    ("value", "bars", "said"),
    [
        (0.875, {"at_least": 0.8}, ""),
        (0.8, {"at_least": 0.8}, ""),
        (0.41, {"at_least": 0.8}, "a.b is 0.41; it must be at least 0.8 to be deployed"),
        (1.5, {"at_most": 1.0}, "a.b is 1.5; it must be at most 1 to be deployed"),
        (9, {"at_least": 1, "at_most": 2}, "a.b is 9; it must be at least 1 and at most 2 to be deployed"),
        (None, {"at_least": 0.8}, "a.b is no number of the report; it must be at least 0.8 to be deployed"),
        (float("nan"), {"at_most": 1.0}, "a.b is no number of the report; it must be at most 1 to be deployed"),
        ("good", {"at_most": 1.0}, "a.b is no number of the report; it must be at most 1 to be deployed"),
    ],
)
def test_a_bar_is_reached_or_the_figure_and_the_bar_are_named(value: Any, bars: dict, said: str) -> None:
    assert promote.refusal(Threshold(metric="a.b", **bars), promote.figures_of({"a": {"b": value}})) == said


def test_a_gate_without_a_bar_is_not_allowed() -> None:
    with pytest.raises(ValueError, match="the gate has no threshold"):
        Deploy(gate=())
    with pytest.raises(ValueError, match="the threshold of x is at_least -inf and at_most inf"):
        Threshold(metric="x")


def test_a_refused_model_is_not_registered(exported: Exported, no_server: None) -> None:
    cfg = replace(CFG, model="refused")
    bad = {"psnr_gain_over_still_db": -1.5, "action_win_rate": 0.41}
    with pytest.raises(promote.Refused, match=r"_db is -1.5; .*; models.student.action_win_rate is 0.41; it must be"):
        exported.deploy(cfg, figures=bad, name="bad")
    assert not exported.registry.search_registered_models("name='refused'")


def test_the_figures_must_be_those_of_the_weights_that_are_exported(exported: Exported) -> None:
    own, other = inputs(exported.store), inputs(exported.store, figures={}, name="no figures")
    given = {"export": [export(exported.store, own)], "evaluation": other["evaluation"]}
    with pytest.raises(UserError, match=r"the evaluation is .*; the export .* was made with"):
        promote.main(CFG, **given, out=exported.store / "a" / "b", run=Run.silent())


# The registry and the alias


def test_a_version_says_where_it_lies_and_what_was_measured(exported: Exported, no_server: None) -> None:
    cfg = replace(CFG, model="registered")
    said = exported.deploy(cfg)
    (version,) = exported.versions(cfg)
    assert (version.source, said["version"], exported.alias(cfg)) == (said["export"], "1", "1")
    assert version.tags["sha256"] == artifacts.sha256(Path(said["export"]) / "manifest.json")
    assert version.tags["models.student.action_win_rate"] == "0.875"
    assert version.tags["models.student.unseen.action_win_rate"] == "0.75"
    assert version.tags["session.latency_p50_ms"] == "100"


def test_deployed_again_it_is_the_same_version(exported: Exported, no_server: None) -> None:
    cfg = replace(CFG, model="again")
    assert exported.deploy(cfg) == exported.deploy(cfg)
    assert (len(exported.versions(cfg)), exported.alias(cfg)) == (1, "1")


def test_another_export_is_another_version_and_takes_the_alias(exported: Exported, no_server: None) -> None:
    cfg = replace(CFG, model="another")
    exported.deploy(cfg)
    assert exported.deploy(cfg, student=transformer(seed=1), name="second")["version"] == "2"
    assert exported.alias(cfg) == "2"


@pytest.mark.parametrize("deployed", [False, True])
def test_a_failure_after_the_move_puts_the_alias_back(
    exported: Exported, no_server: None, monkeypatch: pytest.MonkeyPatch, deployed: bool
) -> None:
    cfg = replace(CFG, model=f"failing-{deployed}")
    if deployed:
        exported.deploy(cfg)
    seen: list[str | None] = []

    def full(*_: Any) -> None:
        seen.append(exported.alias(cfg))
        raise OSError(28, "No space left on device")

    given = inputs(exported.store, transformer(seed=1), name="second")
    uri = export(exported.store, given)
    monkeypatch.setattr(artifacts, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        promote.main(
            cfg, export=[uri], evaluation=given["evaluation"],
            out=exported.store / "deploy" / "x", run=Run.silent(),
        )  # fmt: skip
    assert (seen, exported.alias(cfg)) == ((["2"], "1") if deployed else (["1"], None))


def test_a_finished_deployment_is_done_again_only_where_another_has_been_since(
    exported: Exported, no_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = replace(CFG, model="back and forth")
    first, _ = exported.step(cfg, "one"), exported.step(cfg, "second")
    assert exported.alias(cfg) == "2"
    capsys.readouterr()
    for said in ("deploy is finished, but what it did does not hold any more", ""):
        assert exported.step(cfg, "one") == first
        assert exported.alias(cfg) == "1"
        assert said in (printed := capsys.readouterr().out)
        assert bool(said) == bool(printed)
    assert [path.name for path in Path(first).parent.iterdir() if path.name.endswith(".again")] == []


def test_the_deployment_reads_of_an_export_only_its_manifest(
    exported: Exported, no_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[str] = []

    def read(uri: str, name: str, before: Any = stores.read) -> bytes:
        files.append(name)
        return before(uri, name)

    monkeypatch.setattr(stores, "read", read)
    monkeypatch.setattr(stores, "fetch", lambda uri: pytest.fail(f"{uri} was fetched"))
    given = inputs(exported.store)
    uris = {"export": [export(exported.store, given)], "evaluation": given["evaluation"]}
    steps.perform(steps.STEPS["deploy"], replace(CFG, model="light"), store=str(exported.store), inputs=uris)
    assert files == ["report.json", "manifest.json"]


def test_a_server_of_mlflow_and_a_local_store_do_not_go_together() -> None:
    with pytest.raises(UserError, match="takes no local path as a model's source"):
        promote.registry_at("http://127.0.0.1:5000", "/store/export/key")


# The session


def test_an_export_is_deployed_through_a_real_server(exported: Exported) -> None:
    cfg = replace(CFG, model="real")
    session = exported.deploy(cfg)["session"]
    assert exported.alias(cfg) == "1"
    assert session["pictures"] >= cfg.pictures
    assert 0 < session["latency_p50_ms"] < 1e3 * cfg.picture_s
    assert 0 < session["pictures_per_s"] < 40


def test_a_world_that_shows_nothing_keeps_the_alias_where_it_was(exported: Exported) -> None:
    cfg = replace(CFG, model="black")
    with sessions_go_well():
        exported.deploy(cfg)
    broken = transformer(seed=2)
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    with pytest.raises(RuntimeError, match="the walk's latents are not finite"):
        exported.deploy(cfg, student=broken, name="broken")
    assert exported.alias(cfg) == "1"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving(FakeWorld()) as found:
        yield found


def test_a_session_is_measured_and_leaves_its_slot(place: Place) -> None:
    played = visit.play(place, pictures=24, picture_s=5.0)
    assert 24 <= played["pictures"] < 60
    assert 0 < played["latency_p50_ms"] < 1000
    assert 20 < played["pictures_per_s"] < 60  # the world has 40 a second
    assert not place.server.scheduler.sessions


def test_a_session_waits_for_a_place_and_for_the_export_that_was_rolled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "0" * 20, "1" * 20
    engine = FakeWorld()
    engine.world = replace(engine.world, export=old)
    monkeypatch.setattr(client, "RETRY_S", 0.05)
    with serving(engine, {"k" * 16: "deploy"}, slots=1) as place:
        taken = client.ask("POST", f"{place}/v1/sessions", body={"example": "e0"}, token="k" * 16)
        free = threading.Timer(0.3, client.ask, ("DELETE", f"{place}/v1/sessions/{taken['id']}"), {"token": "k" * 16})
        free.start()
        assert visit.play(place, pictures=24, picture_s=5.0, key="k" * 16, export=old, wait_s=5.0)["pictures"] >= 24
        with pytest.raises(RuntimeError, match=f"serves the export {old}, not {new}"):
            visit.play(place, pictures=24, picture_s=5.0, key="k" * 16, export=new, wait_s=0.2)
        with pytest.raises(client.Answered, match="is answered by 401"):
            visit.play(place, pictures=24, picture_s=5.0, export=old, wait_s=60.0)
        assert not place.server.scheduler.sessions


@pytest.mark.parametrize(
    ("frame", "said"),
    [(wall(0.0, 1.0), "the pictures do not move"), (np.full((32, 48, 3), 90, np.uint8), "is one flat colour")],
)
def test_a_world_that_stands_still_is_seen(frame: np.ndarray, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_world.wall", lambda x, scale: frame)
    with serving(FakeWorld()) as frozen, pytest.raises(RuntimeError, match=said):
        visit.play(frozen, pictures=24, picture_s=5.0)


def test_a_world_that_breaks_is_said_with_its_sentence(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with serving(FakeWorld()) as broken:
        monkeypatch.setattr("fake_world.wall", lambda x, scale: 1 / 0)
        with pytest.raises(RuntimeError, match="the session has ended: the engine failed in this walk"):
            visit.play(broken, pictures=24, picture_s=5.0)


def test_a_refusal_of_the_server_is_said(place: Place) -> None:
    with pytest.raises(RuntimeError, match=r"POST http.*/v1/sessions is answered by 422: .*there is no example 'x'"):
        client.ask("POST", f"{place}/v1/sessions", body={"example": "x"})


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('damaged'); exit(2)", "the server has ended with exit code 2 and said: damaged"),
        ("import time; time.sleep(60)", "the server is not ready in time; see .*log"),
    ],
)
def test_a_server_that_does_not_start_is_said(tmp_path: Path, script: str, said: str) -> None:
    with (tmp_path / "log").open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=file)
    with pytest.raises(RuntimeError, match=said):
        promote.warm(process, tmp_path / "log", time.monotonic() + 2)
    process.kill()
    process.wait()


def test_a_killed_deployment_leaves_no_server(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from relic.launch import promote\n"
        "def die(process, *_): print(process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "promote.warm = die\n"
        f"with promote.serving('/nowhere', log=Path({str(tmp_path / 'log')!r}), start_s=1): pass"
    )
    said = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert said.returncode == -signal.SIGKILL
    until = time.monotonic() + 10
    while Path(f"/proc/{int(said.stdout)}").exists():
        assert time.monotonic() < until, f"{os.getpid()} still sees the server"
        time.sleep(0.05)
    assert not (tmp_path / "log").read_text()
