"""The benchmarks run, and what they measure is sound, seconds aside; what is committed keeps its promises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine
import figures
import pytest
import replay_memory
import rollout
import serve_load
import torch
from measure import Graph, random_transformer
from torch import nn

from relic.model.precision import native_bfloat16
from relic.train import footprint

CPU = torch.device("cpu")
RESULTS = figures.ROOT / "benchmarks/results"
SMALL = replay_memory.SIZES["cpu"]
QUICK = replace(SMALL, model=replace(SMALL.model, layers=1), walking=replace(SMALL.walking, timesteps=(1000.0, 500.0)))
SHORT = rollout.SIZES["cpu"]
SHORT = replace(SHORT, model=replace(SHORT.model, width=32, ffn=64, layers=1), rows=4, columns=6)


def rows_of(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("replay") / "replay.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(replay_memory.SIZES, "cpu", QUICK)
        replay_memory.main(["--chunks", "5", "10", "--json", str(path)])
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("rollout") / "rollout.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rollout.SIZES, "cpu", SHORT)
        patch.setattr(rollout, "CAPACITY", 24)
        patch.setattr(rollout, "counts", lambda: [rollout.count("tiny", SHORT.model, 4, 6, seen=500)])
        rollout.main(["--horizons", "28", "48", "--rounds", "3", "--json", str(path)])
    return json.loads(path.read_text())


def test_autograd_keeps_a_storage_once_and_no_weights() -> None:
    layer, x = nn.Linear(10, 10), torch.randn(5, 10, requires_grad=True)
    graph = Graph(layer)
    with graph:
        y = layer(x).exp()  # keeps x, the weights and y
        z = y * y.view(50).view(5, 10)  # keeps y twice more
    assert graph.now == graph.most == 2 * 5 * 10 * 4
    z.sum().backward()
    assert graph.now == 0


def test_both_ways_give_the_same_gradients() -> None:
    model, gradients = random_transformer(SMALL.model, CPU), []
    batch = replay_memory.batch_of(SMALL, 10, CPU)
    for way, run in replay_memory.ways(model, SMALL, batch, exit_step=2).items():
        model.zero_grad()
        run()
        assert any(p.grad is not None and p.grad.any() for p in model.parameters()), way
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


def test_what_replay_keeps_does_not_grow_and_a_full_graph_does(replayed: dict[str, Any]) -> None:
    short, long = replayed["rows"]
    assert set(replay_memory.Row.__annotations__) == set(short)
    assert [one["exit_step"] for one in replayed["exit_steps"]] == [0, 1]
    assert long["replay_peak_bytes"] <= 1.15 * short["replay_peak_bytes"]
    assert long["full_graph_peak_bytes"] == pytest.approx(2 * short["full_graph_peak_bytes"], rel=0.1)
    assert short["full_graph_peak_bytes"] > 4 * short["replay_peak_bytes"] > 0


def test_an_updates_peak_is_the_critics_graph_of_the_whole_video(replayed: dict[str, Any]) -> None:
    low = footprint.BFLOAT16 if native_bfloat16("cpu") else footprint.FLOAT
    short, long = (
        footprint.activations(QUICK.model, footprint.Pass(latents=latents, rows=4, columns=6, low=low))
        for latents in (10, 20)
    )
    grown = [row["update_peak_bytes"] for row in replayed["rows"]]
    assert grown == [row["phase_peak_bytes"]["critic"] for row in replayed["rows"]]
    assert grown[1] - grown[0] == pytest.approx(long - short, rel=0.15)


def test_the_memory_stays_as_large_but_for_the_full_cache(walked: dict[str, Any]) -> None:
    for policy in rollout.POLICIES:
        short, long = rows_of(walked, policy=policy)
        assert set(rollout.Row.__annotations__) == set(short)
        assert (short["latents"], long["latents"]) == (28, 48)
        grows = [long[name] > short[name] for name in ("memory_bytes", "context_bytes")]
        assert grows == [policy == "full"] * 2, policy
    full, relic = (rows_of(walked, policy=policy, latents=48)[0]["tokens"] for policy in ("full", "relic"))
    assert full == 44 * 24 > 2 * relic


def test_flops_stand_beside_the_rows(walked: dict[str, Any]) -> None:
    (counted,) = walked["flops"]
    assert set(rollout.Count.__annotations__) == set(counted)
    assert counted["formula"] == counted["linear"] + counted["attention"] + counted["cross_attention"]
    assert abs(counted["ratio"] - 1) < 0.05


def test_the_engine_remembers_in_half_the_bytes_and_shows_the_same(tmp_path: Path) -> None:
    engine.main(["--cycles", "1", "--only", "0", "1", "--frames", "17", "--json", str(tmp_path / "engine.json")])
    found = json.loads((tmp_path / "engine.json").read_text())
    wide, narrow = found["rows"]
    assert (wide["memory"], narrow["memory"]) == ("bf16", "fp8")
    assert narrow["memory_bytes"] <= 0.52 * wide["memory_bytes"]
    assert min(row["psnr_1s_db"] for row in found["quality"]) > 40


def test_people_walk_and_press_keys_and_nothing_is_lost(tmp_path: Path) -> None:
    serve_load.main(["--minutes", "0.15", "--turns", "0", "--json", str(tmp_path / "load.json")])
    (row,) = json.loads((tmp_path / "load.json").read_text())["rows"]
    assert (row["sessions_held"], row["refused"], row["frames_lost"]) == (2, 1, 0)
    assert row["frames_sent"] > 16
    assert row["num_actions"] > 2


def test_a_horizon_that_is_no_whole_chunks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rollout.main(["--horizons", "30"])
    assert "multiples of 4 latents from 16 on" in capsys.readouterr().err


def test_figures_are_drawn_from_all_committed_results(tmp_path: Path) -> None:
    drawn = figures.draw(RESULTS, tmp_path, "svg")
    assert {path.stem for path in drawn} == set(figures.DRAWN)
    assert all((figures.ROOT / "docs" / path.name).exists() and path.stat().st_size < 200_000 for path in drawn)


def test_the_figure_of_returns_has_a_panel_for_every_world_and_measure() -> None:
    about = {"low": 1.0, "mean": 2.0, "high": 3.0}
    rows = [
        {"world": world, "policy": policy, "metric": metric, "away_frames": away, **about}
        for world in ("doom", "rooms", "doom + rooms")
        for policy in ("codec", *figures.POLICIES)
        for metric in figures.METRICS
        for away in ([16, 32], [32, 64], [16, 64])
    ]
    drawn = figures.memory({"policies": rows})
    assert len(drawn.axes) == 6
    labels = drawn.axes[0].get_legend_handles_labels()[1]
    assert labels == list(figures.POLICIES)


def test_the_committed_results_keep_what_the_benchmarks_promise() -> None:
    found = json.loads((RESULTS / "replay_memory.json").read_text())
    short, long = rows_of(found, chunks=5)[0], rows_of(found, chunks=80)[0]
    assert long["replay_peak_bytes"] <= 1.15 * short["replay_peak_bytes"]
    assert long["full_graph_peak_bytes"] >= 5 * long["replay_peak_bytes"]
    assert max(row["time_ratio"] for row in found["rows"]) <= 1.6
    replay_s, full_graph_s = (sum(one[name] for one in found["exit_steps"]) for name in ("replay_s", "full_graph_s"))
    assert replay_s <= 1.6 * full_graph_s  # over a training's exit steps
    found = json.loads((RESULTS / "rollout.json").read_text())
    flat, full = (
        rows_of(found, policy=policy, latents=320)[0]["chunk_ms"]
        / rows_of(found, policy=policy, latents=80)[0]["chunk_ms"]
        for policy in ("relic", "full")
    )
    assert flat <= 1.1
    assert full >= 2
    assert {"one layer of 1.3B", "14B"} < {one["model"] for one in found["flops"]}
    assert all(abs(one["ratio"] - 1) < 0.05 for one in found["flops"])


def test_the_committed_results_of_serving_keep_what_is_promised() -> None:
    quiet, long = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("serve_load", "serve_load_30min"))
    assert quiet["overhead"]["overhead"] <= 0.1
    assert long["rows"][0]["resident_growth"] < 0.02
    for row in (quiet["rows"][0], long["rows"][0]):
        assert (row["sessions_held"], row["refused"], row["frames_lost"]) == (row["clients"], 1, 0)
        assert row["fairness"] <= 1.2
