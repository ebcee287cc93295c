"""Makes the small video codec: principal components of the clips' patches encode, a convolutional decoder is trained.

With start weights the encoder stays as it is, for a base model was trained on its latents; only the decoder goes on.
Wan's VAE is not trained here: it becomes the artifact as it is, with its PSNR on the same clips.
"""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from relic.data import clip
from relic.model import weights
from relic.model.codec import Codec, VideoCodec, patches
from relic.model.precision import autocast
from relic.parallel.mesh import Mesh
from relic.pretrained import codecs
from relic.tracking import Run
from relic.train import optimizer
from relic.train.checkpoint import Checkpoints
from relic.train.config import CodecTraining
from relic.train.fragments import Whole
from relic.train.watch import Watch

MEASURED = 16  # test clips


def main(cfg: CodecTraining, *, clips: list[Path], out: Path, run: Run, mesh: Mesh | None = None) -> dict[str, float]:
    """Writes model.safetensors and config.json; returns PSNR in dB on the known-map test clips before and after."""
    mesh = mesh or Mesh()
    device, rows = mesh.device, mesh.rows(cfg.batch)
    if cfg.pretrained:
        return taken(Path(cfg.pretrained), clips, out, device)
    torch.manual_seed(cfg.seed)
    codec = Codec(cfg.model).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, test = frames_of(clips, "train"), frames_of(clips, "known")
    if cfg.start:
        weights.load_into(codec, weights.start_folder(cfg.start))
    else:
        fit_encoder(codec, train)
    codec.encoder.requires_grad_(False)
    optimizers = optimizer.Optimizers(codec, cfg.optimizer)
    before = psnr(codec, test)
    parts = [Whole("codec/weights", codec.state_dict()), Whole("codec", optimizers.state())]
    checkpoints = Checkpoints(cfg.checkpoint.place(out), parts, mesh, cfg.checkpoint)

    with Watch(run, mesh, folder=out, stages=[("codec", cfg.steps)]) as watch:
        for step in range(checkpoints.load(), cfg.steps):
            generator = np.random.default_rng((cfg.seed, step))
            frames = pieces(train, cfg, generator)[rows.start : rows.stop].to(device).float().div(255)
            with autocast(device):
                # 1. encode
                latents = codec.encode(frames)
                # 2. decode from noisy latents
                drawn = generator.standard_normal((cfg.batch, *latents.shape[1:]), np.float32)
                noise = torch.from_numpy(drawn[rows.start : rows.stop]).to(device)
                decoded = codec.decode(latents + cfg.noise * noise).float()
            loss = functional.mse_loss(decoded, frames) + 0.1 * functional.l1_loss(decoded, frames)
            # 3. one step
            loss.backward()
            watch.computed()
            loss = mesh.reduced(codec, loss)
            optimizer.update(codec, optimizers, loss, cfg.optimizer, optimizer.rate(cfg.optimizer, step, cfg.steps))
            watch.step(step, {"loss": loss.item()}, note=f"loss {loss.item():.4f}")
            checkpoints.after(step + 1, watch)

    checkpoints.close()
    if mesh.is_first:
        weights.save(codec, out)
    return {
        "codec_psnr_db_before": before,
        "codec_psnr_db": psnr(codec, test),
        "seen_frames": cfg.steps * cfg.batch * cfg.piece_frames,
    }


def taken(folder: Path, clips: list[Path], out: Path, device: str) -> dict[str, float]:
    """Copies a published codec's files and measures it."""
    codec = codecs.load(folder, device)
    measured = psnr(codec, [found.frames for found in islice(clip.read_region(clips, "known"), MEASURED)])
    for name in codecs.files(folder):
        shutil.copyfile(folder / name, out / name)
    return {"codec_psnr_db_before": measured, "codec_psnr_db": measured, "seen_frames": 0}


def frames_of(folders: list[Path], region: str) -> list[np.ndarray]:
    """The frames (uint8 [T, H, W, 3]) of every kept clip of a region."""
    return [found.frames for found in clip.read_region(folders, region)]


def pieces(videos: list[np.ndarray], cfg: CodecTraining, generator: np.random.Generator) -> Tensor:
    """A batch uint8 [B, F_px, 3, side, side] of random crops in space and time, half of them mirrored."""
    batch = []
    for _ in range(cfg.batch):
        video = videos[generator.integers(len(videos))]
        side = min(cfg.piece_size, *video.shape[1:3])
        t, y, x = (
            generator.integers(n - m + 1) for n, m in zip(video.shape, (cfg.piece_frames, side, side), strict=False)
        )
        piece = video[t : t + cfg.piece_frames, y : y + side, x : x + side]
        batch.append(piece[:, :, ::-1] if generator.random() < 0.5 else piece)
    return rearrange(torch.from_numpy(np.stack(batch)), "b t h w c -> b t c h w")


@torch.inference_mode()
def fit_encoder(codec: Codec, videos: list[np.ndarray], most: int = 256) -> None:
    """Sets the encoder to the principal components of the videos' patches, and the latents' mean and scale.

    Up to `most` videos are read, whole. A channel is divided by the root of its standard deviation, then all by one
    number that makes the mean square 1: fully whitened, fine texture would weigh as much in the flow's loss as the
    layout of the picture; not at all, it would drown in the noise of every timestep.
    """
    picked = videos[:: max(1, len(videos) // most)][:most]
    rows = torch.cat([patches(as_batch(video, "cpu")).flatten(0, 3) for video in picked]).double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).mT @ (rows - mean) / len(rows))
    components = vectors.flip(1)[:, : codec.cfg.latent_channels].mT
    std = values.flip(0)[: codec.cfg.latent_channels].clamp(min=1e-12).sqrt()
    codec.encoder.weight.copy_(components)
    codec.encoder.bias.copy_(-components @ mean)
    codec.std.copy_(std.sqrt() * std.mean().sqrt())


@torch.inference_mode()
def psnr(codec: VideoCodec, videos: list[np.ndarray]) -> float:
    """Mean PSNR in dB of the first MEASURED whole videos through the codec."""
    values = []
    for video in videos[:MEASURED]:
        frames = as_batch(video, codec.mean.device)
        error = functional.mse_loss(codec.decode(codec.encode(frames)).clamp(0, 1), frames)
        values.append(-10 * torch.log10(error).item())
    return float(np.mean(values))


def as_batch(video: np.ndarray, device: torch.device | str) -> Tensor:
    """Frames [1, F_px, 3, H, W] in 0..1 of a video uint8 [F_px, H, W, 3]."""
    return rearrange(torch.from_numpy(video).to(device), "t h w c -> 1 t c h w").float().div(255)
