"""Training the codec, on walks drawn without a world."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import synthetic
import torch
import vaes
from tiny_models import first_moment, whole_and_resumed

from relic.data import clip
from relic.geometry.config import Actions
from relic.model import config, precision, weights
from relic.model.codec import Codec, patches
from relic.parallel import mesh as meshes
from relic.parallel.config import Parallel
from relic.pretrained import codecs
from relic.tracking import Run
from relic.train import codec
from relic.train.config import Checkpointing, CodecTraining

SMALL = config.Codec(latent_channels=4, decoder_widths=(8, 8, 8, 8))
OFTEN = Checkpointing(every_s=-1)
QUICK = CodecTraining(model=SMALL, steps=4, batch=2, piece_frames=5, piece_size=32, checkpoint=OFTEN)


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


def trained(cfg: CodecTraining, clips: list[Path], out: Path, run: Run | None = None) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    codec.main(cfg, clips=clips, out=out, run=run or Run.silent())
    return weights.load_codec(out).state_dict()


def one_step(clips: list[Path], out: Path) -> None:
    precision.native_bfloat16 = lambda device: False  # type: ignore[assignment]
    mesh = meshes.joined(Parallel())
    codec.main(replace(QUICK, steps=1), clips=clips, out=out, run=Run.silent(), mesh=mesh)


def test_two_processes_have_the_gradient_of_one(clips: list[Path], tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        ranks.run(one_step, world, clips, tmp_path / str(world))
        found.append(first_moment(OFTEN.place(tmp_path / str(world)), "codec"))
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()


def test_resumed_equals_uninterrupted(clips, tmp_path):
    whole, resumed = whole_and_resumed(codec.main, QUICK, tmp_path, killed_at=2, clips=clips)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def fitted(videos: list[np.ndarray]) -> Codec:
    network = Codec(SMALL).eval()
    codec.fit_encoder(network, videos)
    return network


@torch.inference_mode()
def test_latents_have_mean_0_and_mean_square_1(clips):
    videos = codec.frames_of(clips, "train")
    network = fitted(videos)
    latents = torch.cat([network.encode(codec.as_batch(v, "cpu")) for v in videos]).transpose(0, 2).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.square().mean(), torch.ones(()), atol=1e-3, rtol=0)


def test_the_encoders_components_are_orthonormal(clips):
    components = fitted(codec.frames_of(clips, "train")).encoder.weight.detach()
    torch.testing.assert_close(components @ components.mT, torch.eye(4), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_encoders_components_reconstruct_better_than_random_ones(clips):
    videos = codec.frames_of(clips, "train")
    rows = torch.cat([patches(codec.as_batch(v, "cpu")).flatten(0, 3) for v in videos])
    rows = rows - rows.mean(0)
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(rows.shape[1], 4, generator=generator)).Q for _ in range(20)]
    errors = [(rows - rows @ basis @ basis.mT).square().mean() for basis in bases]
    components = fitted(videos).encoder.weight
    assert (rows - rows @ components.mT @ components).square().mean() < min(errors)


def test_a_start_keeps_its_latent_space(clips, tmp_path, monkeypatch):
    before = trained(QUICK, clips, tmp_path / "start")
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    after = trained(replace(QUICK, start="start", steps=3, seed=1), clips, tmp_path / "tuned")
    same = {name: torch.equal(value, before[name]) for name, value in after.items()}
    assert all(same[name] for name in ("encoder.weight", "encoder.bias", "mean", "std"))
    assert not same["decoder.1.weight"]


def test_pieces_are_cut_within_the_clips():
    video = np.arange(9 * 16 * 24 * 3, dtype=np.uint32).reshape(9, 16, 24, 3).astype(np.uint8)
    cfg = CodecTraining(batch=5, piece_frames=5, piece_size=64)
    assert codec.pieces([video], cfg, np.random.default_rng(0)).shape == (5, 5, 3, 16, 16)


def test_a_region_without_clips_is_said(clips):
    with pytest.raises(ValueError, match="no kept clip of region 'unseen'"):
        codec.frames_of(clips, "unseen")


def test_wans_vae_is_taken_as_it_is_and_measured(clips, tmp_path):
    vaes.wan_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "out").mkdir()
    found = codec.main(
        CodecTraining(pretrained=str(tmp_path / "vae")), clips=clips, out=tmp_path / "out", run=Run.silent()
    )
    made, known = codecs.load(tmp_path / "out"), codec.frames_of(clips, "known")
    assert found["codec_psnr_db"] == codec.psnr(made, known)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == codecs.files(tmp_path / "vae")
    latents = made.encode(codec.as_batch(known[0], "cpu"))
    assert latents.shape == (1, (len(known[0]) + 3) // 4, 16, 8, 12)
