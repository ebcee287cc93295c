"""Training the codec, on walks drawn without a world."""

from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from relic.data import clip
from relic.geometry.config import Actions
from relic.model import weights
from relic.model.config import Codec
from relic.tracking import Run
from relic.train import codec
from relic.train.config import CodecTraining

SMALL = Codec(latent_channels=4, encoder_width=8, decoder_widths=(8, 8, 8, 8))
QUICK = CodecTraining(model=SMALL, steps=4, batch=2, piece_frames=5, piece_size=32, checkpoint_every_s=-1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    entries = []
    for index, region in enumerate(("train", "train", "known")):
        r = synthetic.recording(index, region=region)
        made = clip.Clip(
            id=f"walk-{index}", frames=r.frames, poses=r.poses, intrinsics=r.intrinsics, fps=r.fps, world=r.world,
            place=r.place, region=r.region, seed=r.seed, tags=r.tags, caption="a wall",
        )  # fmt: skip
        entries.append(clip.write_clip(folder, made, actions=Actions(), crf=10, reasons=[], measures={}))
    clip.write_index(folder, entries, {})
    return [folder]


class KilledAt(Run):
    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def log(self, metrics, step):
        if step == self.step:
            raise KeyboardInterrupt


def trained(cfg: CodecTraining, clips: list[Path], out: Path, run: Run | None = None) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    codec.main(cfg, clips=clips, out=out, run=run or Run.silent())
    return weights.load_codec(out).state_dict()


def test_resumed_equals_uninterrupted(clips, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(QUICK, clips, tmp_path / "b", KilledAt(2))
    whole, resumed = trained(QUICK, clips, tmp_path / "a"), trained(QUICK, clips, tmp_path / "b")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_latents_have_mean_0_and_variance_1(clips, tmp_path):
    trained(QUICK, clips, tmp_path)
    network, videos = weights.load_codec(tmp_path), codec.frames_of(clips, "train")
    latents = torch.cat([network.encode(codec.as_batch(v, "cpu")).detach() for v in videos]).transpose(0, 2).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(4), atol=1e-3, rtol=0)


def test_a_frozen_encoder_keeps_its_latent_space(clips, tmp_path, monkeypatch):
    before = trained(QUICK, clips, tmp_path / "start")
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    cfg = CodecTraining(
        model=SMALL, start="start", freeze_encoder=True, steps=3, batch=2, piece_frames=5, piece_size=32
    )
    after = trained(cfg, clips, tmp_path / "tuned")
    same = {name: torch.equal(value, before[name]) for name, value in after.items()}
    assert all(same[name] for name in same if not name.startswith("decoder."))
    assert not same["decoder.1.weight"]


def test_pieces_are_cut_within_the_clips():
    video = np.arange(9 * 16 * 24 * 3, dtype=np.uint32).reshape(9, 16, 24, 3).astype(np.uint8)
    cfg = CodecTraining(batch=5, piece_frames=5, piece_size=64)
    assert codec.pieces([video], cfg, np.random.default_rng(0)).shape == (5, 5, 3, 16, 16)


def test_a_region_without_clips_is_said(clips):
    with pytest.raises(ValueError, match="no kept clip of region 'unseen'"):
        codec.frames_of(clips, "unseen")
