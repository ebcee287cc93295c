"""A causal model on data: what a chunk is, given the true chunks before it; and how its many steps become few.

`flow_loss` is flow matching. The last `noisy_chunks` chunks of a video are noisy, each at a timestep of its own, the
earlier ones clean, and to them pooled, all of them (memory/masks.py, `hybrid`). With one noisy chunk this is teacher
forcing; with all of them, diffusion forcing (arXiv 2407.01392).

The others distil a model that teacher forcing has made, and that sees what the student sees. A bidirectional teacher's
trajectories depend on what comes later, so that one noisy chunk leads to many clean ones, and a causal student that
regresses them learns their mean; a causal model's are a function of the noise ("frame-level injectivity", Causal
Forcing, arXiv 2602.02214). Both losses are of the last chunk of a video of random length.

- `jump_loss`, causal ODE distillation of Causal Forcing: that model's ODE is solved for the chunk, when it is needed,
  and the jumps from its states at the student's timesteps regress its end.
- `consistency_loss`, causal consistency distillation of Causal Forcing++ (arXiv 2605.15141) and, as teacher forcing, of
  Causal-rCM (arXiv 2606.25473): one Euler step of the ODE between neighbouring timesteps; the jump from the noisier
  state regresses the average student's jump from the other. At timestep 0 a jump ends where it began.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from relic.data.loader import Dataset
from relic.generate import sampler
from relic.generate.config import Rollout
from relic.memory import masks
from relic.memory.config import Memory
from relic.model import flow
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.train import optimizer, trainee
from relic.train.checkpoint import Checkpoints
from relic.train.config import StudentInit
from relic.train.draws import Draws
from relic.train.teacher import noised
from relic.train.trajectories import kept
from relic.train.watch import Watch


class Videos(NamedTuple):
    """Beginnings of clips, whose last chunk is to be learned."""

    latents: Tensor  # [B, F, C, H, W]
    conditions: Conditions
    first_noisy: int
    landmarks: tuple[int, ...]

    def segments(self, rollout: Rollout) -> tuple[masks.Segment, ...]:
        return masks.hybrid(self.latents.shape[1], rollout.chunk, 1, rollout.memory, landmarks=self.landmarks)


def flow_loss(
    model: Transformer,
    latents: Tensor,
    conditions: Conditions,
    rollout: Rollout,
    *,
    noisy_chunks: int,
    shift: float,
    draws: Draws,
    landmarks: Sequence[int] = (),
) -> Tensor:
    """Mean squared error of the velocity of the noisy chunks of latents [B, F, C, H, W], whose F divides by the chunk.

    The image latent stays clean and bears no loss."""
    length, chunk = latents.shape[1], rollout.chunk
    first_noisy = max(1, length - chunk * noisy_chunks)
    noisy, timesteps, noise = noised(latents, shift, draws, chunk=chunk, num_clean=first_noisy)
    segments = masks.hybrid(length, chunk, noisy_chunks, rollout.memory, landmarks=landmarks)
    with autocast(latents.device):
        velocity, _ = model(noisy, timesteps, conditions, segments=segments)
    return functional.mse_loss(velocity[:, first_noisy:].float(), (noise - latents)[:, first_noisy:])


def train(cfg: StudentInit, start: Path, dataset: Dataset, out: Path, watch: Watch, mesh: Mesh) -> Path:
    """Teaches the model of a folder by `flow_loss`, a noisy chunk a video; the hidden folder of its moving average."""
    folder = out / ".causal"
    if mesh.said_by_first((folder / "config.json").exists()):
        return folder
    model = trainee.trainee("causal", trainee.loaded(start, mesh), cfg.optimizer, mesh, ema=cfg.ema)
    checkpoints = Checkpoints(cfg.checkpoint.place(out, "causal"), [model], mesh, cfg.checkpoint)

    for step in range(checkpoints.load(), cfg.causal_steps):
        loss = torch.zeros((), device=mesh.device)
        for piece in mesh.pieces(cfg.batch):
            draws = Draws((cfg.seed, 3, step), piece)
            videos = drawn(cfg, dataset, (cfg.seed + 3, step, cfg.batch), draws, mesh.device)
            share = mesh.share(piece, cfg.batch) * flow_loss(
                model.model, videos.latents, videos.conditions, cfg.rollout, noisy_chunks=1, shift=cfg.causal_shift,
                draws=draws, landmarks=videos.landmarks,
            )  # fmt: skip
            share.backward()
            loss += share.detach()
        watch.computed()
        rate = optimizer.rate(cfg.optimizer, step, cfg.causal_steps)
        value, norm = model.step(loss, rate, step)
        figures = {"causal_loss": value, "gradient_norm": norm, "learning_rate": rate}
        watch.step(step, figures, note=f"loss {value:.4f}")
        checkpoints.after(step + 1, watch)

    with watch.pause():
        checkpoints.close()
        trainee.save(model.average, folder, mesh)
    model.release()
    if not all(mesh.said_by_all((folder / "config.json").exists())):
        raise ValueError(f"{folder} is not seen by all processes; the store must be a folder that all machines share")
    return folder


def clips(cfg: StudentInit) -> int:
    """Clips in a batch of `jump_loss`: each gives a jump for every one of the student's timesteps."""
    return max(1, cfg.batch // len(cfg.rollout.timesteps))


def jump_loss(
    student: Transformer, draws: Draws, *, teacher: Transformer, dataset: Dataset, cfg: StudentInit
) -> Tensor:
    """Mean squared error of the jumps to the ends of the causal teacher's trajectories, from all of the student's
    timesteps for each clip."""
    device, levels = next(student.parameters()).device, torch.tensor(cfg.rollout.timesteps)
    videos = drawn(cfg, dataset, (cfg.seed + draws.key[1], draws.key[2], clips(cfg)), draws, device)
    states, count = trajectory(teacher, videos, cfg, draws), len(draws.rows)
    each = torch.arange(count).repeat_interleave(len(levels))
    noisy = videos.latents[each]
    noisy[:, videos.first_noisy :] = rearrange(states[:, :-1], "b t f c h w -> (b t) f c h w")
    timesteps = levels.to(device).repeat(count)
    guess = jump(student, noisy, timesteps, videos._replace(conditions=videos.conditions.rows(each)), cfg)
    return functional.mse_loss(guess, states[each, -1])


def consistency_loss(
    student: Transformer, draws: Draws, *, teacher: Transformer, average: Transformer, dataset: Dataset,
    cfg: StudentInit,
) -> Tensor:  # fmt: skip
    """Mean squared distance between the student's jump from one timestep and the average student's from the next, at
    which a step of the causal teacher arrives."""
    device = next(student.parameters()).device
    videos = drawn(cfg, dataset, (cfg.seed + draws.key[1], draws.key[2], cfg.batch), draws, device)
    times = flow.schedule(cfg.ode_steps, cfg.ode_shift).to(device)
    place = draws.integers(cfg.ode_steps).to(device)
    noise = draws.normal(*videos.latents.shape[1:]).to(device)
    noisy = flow.add_noise(videos.latents, noise, spread(times[place], videos))
    target = consistency_target(average, teacher, noisy, times[place], times[place + 1], videos, cfg)
    return functional.mse_loss(jump(student, noisy, times[place], videos, cfg), target)


@torch.no_grad()
def consistency_target(
    average: Transformer, teacher: Transformer, noisy: Tensor, timesteps: Tensor, following: Tensor, videos: Videos,
    cfg: StudentInit,
) -> Tensor:  # fmt: skip
    """Where the average student jumps to from where the teacher steps to, from timesteps [B] to the following [B]."""
    before, after = spread(timesteps, videos), spread(following, videos)
    moved = noisy + velocity(teacher, noisy, before, videos, cfg) * (flow.level(after) - flow.level(before))
    return jump(average, moved, following, videos, cfg)


@torch.no_grad()
def trajectory(model: Transformer, videos: Videos, cfg: StudentInit, draws: Draws) -> Tensor:
    """States [B, timesteps + 1, f, C, H, W] of the last chunk's f noisy latents, given the true ones before."""
    first = videos.first_noisy
    start = videos.latents.clone()
    start[:, first:] = draws.normal(*start[:, first:].shape[1:]).to(start.device)
    times = flow.schedule(cfg.ode_steps, cfg.ode_shift).tolist()
    path = sampler.integrated(lambda x, t: velocity(model, x, t, videos, cfg), start, times, num_clean=first)
    return kept(((time, latents[:, first:]) for time, latents in path), cfg.rollout.timesteps)


def jump(model: Transformer, noisy: Tensor, timesteps: Tensor, videos: Videos, cfg: StudentInit) -> Tensor:
    """The clean last chunk [B, f, C, H, W] that a model points to from latents whose last chunk is at timesteps [B]."""
    each = spread(timesteps, videos)
    return flow.clean_of(noisy, velocity(model, noisy, each, videos, cfg), each)[:, videos.first_noisy :]


def velocity(model: Transformer, noisy: Tensor, timesteps: Tensor, videos: Videos, cfg: StudentInit) -> Tensor:
    """Of latents [B, F, C, H, W] at timesteps [B, F], under the videos' mask."""
    with autocast(noisy.device):
        found, _ = model(noisy, timesteps, videos.conditions, segments=videos.segments(cfg.rollout))
    return found.float()


def spread(timesteps: Tensor, videos: Videos) -> Tensor:
    """Timesteps [B, F] of videos whose last chunks are at `timesteps` [B]; what comes before is clean."""
    each = timesteps[:, None].repeat(1, videos.latents.shape[1])
    each[:, : videos.first_noisy] = 0
    return each


# What a step draws


def drawn(
    cfg: StudentInit, dataset: Dataset, request: tuple[int, int, int], draws: Draws, device: torch.device | str
) -> Videos:
    """The beginnings of samples, of one random length; now and then without the caption. `request` is the seed, step
    and size of the batch whose rows are drawn."""
    length = random_length(cfg, draws.shared)
    first_noisy = max(1, length - cfg.rollout.chunk)
    rows = dataset.indices(*request)
    batch = dataset.batch([rows[row] for row in draws.rows], num_latents=length, device=device)
    dropped = draws.chosen(cfg.text_dropout).to(device)
    landmarks = random_landmarks(cfg.rollout.memory, first_noisy, draws.shared)
    return Videos(batch.latents, batch.conditions.without_text(dropped), first_noisy, landmarks)


def random_length(cfg: StudentInit, generator: np.random.Generator) -> int:
    """A length in whole chunks; the image alone, which is always clean, is none."""
    chunk = cfg.rollout.chunk
    return chunk * int(generator.integers(1 + (chunk == 1), cfg.latents // chunk + 1))


def random_landmarks(memory: Memory, num_clean: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Which of the clean latents "relic_landmarks" shows whole. A walk chooses by pose; training by chance, so that
    the student takes whatever it is shown."""
    if memory.policy != "relic_landmarks":
        return ()
    found = generator.choice(np.arange(1, num_clean), min(memory.retrieved, num_clean - 1), replace=False)
    return tuple(sorted(found.tolist()))
