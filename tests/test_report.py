"""The evaluation step as a whole, on small networks that know nothing."""

import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import tiny_models
import tiny_umt5
import torch
from held_out import write_clips
from PIL import Image
from tiny_models import transformer

from relic import artifacts
from relic.evaluate import page, predict, report
from relic.evaluate.config import Evaluate, Revisit
from relic.generate.config import Rollout, Sampler
from relic.memory.config import Memory
from relic.model import config, weights
from relic.model.codec import Codec
from relic.model.pose_net import PoseNet
from relic.model.transformer import Transformer
from relic.tracking import Run

CFG = Evaluate(
    known=3, unseen=2, num_latents=6, batch=2, sampler=Sampler(steps=2), strips=2, script_starts=2, script_latents=4,
    revisit=Revisit(min_away=4, left=2.0),
    rollout=Rollout(memory=Memory(window=2, capacity=8)),
)  # fmt: skip
SUMMARIES = {
    "codec": {"codec_psnr_db_before": 12.25, "codec_psnr_db": 24.5},
    "teacher": {"loss_before": 0.75, "loss": 0.5},
    "student-init": {"loss_before": 0.125, "loss": 0.0625},
    "distill": {"loss_before": 1.5, "loss": 1.25},
    "pose-net": {"rot_deg_before": 1.0, "rot_deg": 0.5, "trans_before": 0.75, "trans": 0.25},
}
INPUTS = ("codec", "teacher", "student", "distilled", "estimator")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Finished artifacts of all networks."""
    store, key = tmp_path_factory.mktemp("store"), "0" * artifacts.KEY_LENGTH
    torch.manual_seed(0)
    codec = Codec(config.Codec(latent_channels=4, decoder_widths=(4, 4, 4, 4)))
    made: dict[str, Codec | PoseNet | Transformer] = {
        "codec": codec,
        "teacher": transformer(),
        "student-init": transformer(seed=1),
        "distill": transformer(seed=3),
        "pose-net": PoseNet(config.PoseNet()),
    }
    for step, network in made.items():
        weights.save(network, store / step / key)
        artifacts.write_json(store / step / key / "manifest.json", {"summary": SUMMARIES[step]})
    return {name: [store / step / key] for name, step in zip(INPUTS, made, strict=True)}


def evaluated(clips: Path, networks: dict[str, list[Path]], out: Path, cfg: Evaluate = CFG) -> tuple[dict, str]:
    """report.json and report.html of an evaluation."""
    out.mkdir(exist_ok=True)
    report.main(cfg, clips=[clips], **networks, out=out, run=Run.silent())
    return artifacts.read_json(out / "report.json"), (out / "report.html").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, networks: dict[str, list[Path]]) -> tuple[Path, dict, str]:
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:  # start weights that fit the small codec
        patch.setattr(weights, "SHIPPED", out / "weights")
        weights.save(transformer(seed=2), out / "weights" / "tiny" / "base")
        clips = write_clips(out / "clips", train=1, known=3, unseen=2, dropped=2)
        cfg = Evaluate(**{**vars(CFG), "base": "tiny/base"})
        return out / "out", *evaluated(clips, networks, out / "out", cfg)


def test_the_report_counts_clips_and_measures_every_model_on_both_regions(finished: tuple[Path, dict, str]) -> None:
    _, figures, _ = finished
    assert (figures["clips_kept"], figures["clips_dropped"], figures["codec_psnr_db"]) == (6, 2, 24.5)
    assert list(figures["models"]) == ["base", "teacher", "student", "distilled"]
    for found in figures["models"].values():
        assert isinstance(found["psnr_gain_over_still_db"], float)
        assert 0 <= found["action_win_rate"] <= 1
        assert (found["walks"], found["unseen"]["walks"]) == (3, 2)


def test_the_report_has_the_cameras_with_their_floors_the_scripts_and_the_returns(
    finished: tuple[Path, dict, str],
) -> None:
    _, figures, _ = finished
    floors = ["true video", "true video, through the codec", "frozen video", "another walk's actions"]
    assert list(figures["cameras"])[:4] == floors
    assert set(figures["cameras"]) > set(report.MODELS)
    assert figures["rpe_floor_rot_deg"] == figures["cameras"]["true video"]["rpe_r_1"]["mean"]
    assert "dolly_in + pan_left" in figures["scripts"]
    assert list(figures["returns"]) == ["true", "still", "relic", "window only", "full", "shuffled", "another walk's"]
    assert figures["returns"]["still"]["gated_psnr_db"] == 0
    assert figures["chunk_latency_ms_p50"] > 0


def test_the_page_needs_nothing_beside_it(finished: tuple[Path, dict, str]) -> None:
    _, _, html = finished
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) > 30
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|href=|url\(|@import|<script|<link", html)


def test_the_page_names_every_model_and_its_figures(finished: tuple[Path, dict, str]) -> None:
    _, figures, html = finished
    for name, found in figures["models"].items():
        row = re.findall(f"<tr><td>{name}</td>.*?</tr>", html)[0]  # the first of the tables
        shown = re.findall("<td>(.*?)</td>", row)
        assert shown[1:3] == [page.escape(report.MODELS[name]), f"{found['psnr_db']:.2f}"]
        assert shown[3] == f"{found['psnr_gain_over_still_db']:+.2f}"
        assert shown[4] == f"{found['action_win_rate']:.0%} of 3"
        assert shown[6] == f"{found['unseen']['action_win_rate']:.0%}"


@pytest.mark.parametrize(
    ("gain", "won", "said"),
    [
        (0.5, 1.0, "gain better (+0.250 to +0.500), win rate better (75.0% to 100.0%)"),
        (0.25, 0.5, "gain not improved (+0.250 to +0.250), win rate worse (75.0% to 50.0%)"),
    ],
)
def test_the_page_says_whether_distillation_has_improved_the_student(gain: float, won: float, said: str) -> None:
    student = {"psnr_gain_over_still_db": 0.25, "action_win_rate": 0.75}
    distilled = {"psnr_gain_over_still_db": gain, "action_win_rate": won}
    found = page.distillation({"student": student, "distilled": distilled})
    assert found == f"What distillation did: {said}."


def test_the_page_shows_what_each_training_step_changed(finished: tuple[Path, dict, str]) -> None:
    rows = re.findall("<tr><td>([a-z-]+): [^<]*</td><td>(.*?)</td><td>(.*?)</td></tr>", finished[2])
    assert rows == [
        ("codec", "12.25", "24.50"), ("pose-net", "1.00", "0.50"), ("pose-net", "0.75", "0.25"),
        ("teacher", "0.7500", "0.5000"), ("student-init", "0.1250", "0.0625"), ("distill", "1.5000", "1.2500"),
    ]  # fmt: skip


def test_the_page_shows_strips_of_true_and_generated_frames_of_both_regions(finished: tuple[Path, dict, str]) -> None:
    html = finished[2]
    for name in ("base", "teacher", "student", "distilled"):  # the true frames are shown with the returns too
        assert html.count(f'alt="{name}, frame 16"') == 2 * CFG.strips
    assert html.count('alt="true, frame 16"') >= 2 * CFG.strips
    for walk in ("known-0", "known-1", "unseen-0", "unseen-1"):
        assert f"<b>{walk}</b>" in html
    assert "a <bright> room called known-0" in unescape(html)
    assert "<bright>" not in html


def test_the_page_shows_dropped_clips_with_their_reason(finished: tuple[Path, dict, str]) -> None:
    html = finished[2]
    assert "<td>exposure</td><td>max_luminance</td><td>190.0</td><td>2</td>" in html
    assert html.count("exposure: max_luminance 202, threshold 190") == 2
    assert "<b>dropped-0</b>" in html


def test_the_examples_are_first_frames_and_the_actions_that_the_world_knows(finished: tuple[Path, dict, str]) -> None:
    folder = finished[0] / "examples"
    examples = artifacts.read_json(folder / "examples.json")
    assert [example["id"] for example in examples] == ["known-0", "known-1", "known-2", "unseen-0", "unseen-1"]
    for example in examples:
        with Image.open(folder / example["image"]) as picture:
            assert picture.size == (96, 64)
    world = artifacts.read_json(folder / "world.json")
    assert world["fps"] == 16
    assert world["actions"] == pytest.approx({"dolly_in": 1.0, "pan_left": 1.75, "pan_right": 5.5 / 3}, abs=0.01)


def test_without_start_weights_the_base_is_null_and_said_to_be_none(
    networks: dict[str, list[Path]], tmp_path: Path
) -> None:
    figures, html = evaluated(write_clips(tmp_path / "clips", known=3, unseen=2), networks, tmp_path / "out")
    assert figures["models"]["base"] is None
    rows = re.findall("<tr>(<td>(?:base|teacher|student|distilled)</td>.*?)</tr>", html)
    assert "none: trained from nothing" in rows[0]
    assert {row.count("<td>") for row in rows[:4]} == {7}


def test_without_unseen_maps_the_known_ones_are_reported(networks: dict[str, list[Path]], tmp_path: Path) -> None:
    figures, html = evaluated(write_clips(tmp_path / "clips", known=3), networks, tmp_path / "out")
    assert all("unseen" not in figures["models"][name] for name in ("teacher", "student", "distilled"))
    assert "Held-out walks, known maps" in html
    assert "Held-out walks, unseen maps" not in html


def test_models_that_take_embeddings_are_measured_with_umt5(networks: dict[str, list[Path]], tmp_path: Path) -> None:
    model = replace(tiny_models.CFG, text_vocabulary=0, text_width=tiny_umt5.WIDTH, text_tokens=16)
    for name in ("teacher", "student", "distilled"):
        folder = tmp_path / "store" / networks[name][0].relative_to(networks[name][0].parents[1])
        weights.save(transformer(model), folder)
        shutil.copy(networks[name][0] / "manifest.json", folder)
        networks = {**networks, name: [folder]}
    clips = write_clips(tmp_path / "clips", known=2)
    with pytest.raises(ValueError, match="takes umT5's embeddings; give umT5's folder as text_encoder"):
        evaluated(clips, networks, tmp_path / "refused")
    cfg = replace(CFG, text_encoder=str(tiny_umt5.write(tmp_path / "umt5")), unseen=0)
    figures, _ = evaluated(clips, networks, tmp_path / "out", cfg)
    assert isinstance(figures["models"]["distilled"]["psnr_gain_over_still_db"], float)


def test_without_known_walks_the_step_says_what_is_missing(networks: dict[str, list[Path]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than 2 test walks of known maps are kept; record more or loosen"):
        evaluated(write_clips(tmp_path / "clips", known=1, unseen=2), networks, tmp_path / "out")


def test_a_killed_evaluation_goes_on_and_reports_the_same(
    networks: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = write_clips(tmp_path / "clips", known=3, unseen=2)
    whole, _ = evaluated(clips, networks, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(predict, "few_steps", lambda *_: pytest.fail("killed before the student"))
        with pytest.raises(pytest.fail.Exception):
            evaluated(clips, networks, tmp_path / "out")
    monkeypatch.setattr(predict.sampler, "sample", lambda *_, **__: pytest.fail("the teacher was asked again"))
    again, _ = evaluated(clips, networks, tmp_path / "out")
    assert again.pop("chunk_latency_ms_p50") > 0 < whole.pop("chunk_latency_ms_p50")
    assert again == whole
