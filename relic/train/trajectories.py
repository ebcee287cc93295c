"""Step trajectories: the bidirectional teacher's ODE, solved from noise for many clips (section 4.4.1 of RELIC).

Kept are the states at the student's timesteps and the end, in float16, with their conditions: a file a batch, named by
the batch's number over all parts, so that the files of all parts together are the same bytes whatever their number. A
killed call goes on behind its last file. At the end some clips are integrated again from one kept state to the next, by
the same Euler steps; where they arrive elsewhere, a file is damaged, and the step fails.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from relic.data import loader
from relic.generate import sampler
from relic.generate.config import Sampler
from relic.model import flow
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import trainee
from relic.train.config import Trajectories

CONDITIONS = ("actions", "poses", "text", "empty")


def main(
    cfg: Trajectories, *, teacher: list[Path], samples: list[Path], out: Path, run: Run, part: int = 0, parts: int = 1
) -> dict[str, float]:
    """Writes trajectories-<batch>.safetensors for the batches of this part, which may be none."""
    mesh = Mesh()
    model, device = trainee.frozen(teacher[0], mesh), mesh.device
    dataset = loader.load(samples, model.cfg)
    rows, mine = chosen(cfg, dataset), range(part, -(-cfg.clips // cfg.batch), parts)
    files = [out / f"trajectories-{index:05d}.safetensors" for index in mine]
    for done, (index, path) in enumerate(zip(mine, files, strict=True), 1):
        if not path.exists():
            picked = rows[index * cfg.batch : (index + 1) * cfg.batch]
            batch = dataset.batch(picked, num_latents=cfg.latents, device=device)
            write(path, solve(cfg, model, batch, index), batch.conditions, cfg.timesteps)
        run.progress(done, len(files), "solving the teacher's ODE")
    solved = Solved(files)
    generator = np.random.default_rng((cfg.seed, part))
    again = generator.choice(len(solved), min(cfg.verified, len(solved)), replace=False).tolist()
    error = verify(cfg, model, solved, again)
    return {"trajectories": len(solved), "verified": len(again), "largest_error": error}


def chosen(cfg: Trajectories, dataset: loader.Dataset) -> list[int]:
    """The samples whose ODE is solved, balanced over the actions, none again before all others had their turn."""
    order: dict[int, None] = {}
    for epoch in itertools.count():
        if len(order) >= min(cfg.clips, len(dataset)):
            break
        order |= dict.fromkeys(dataset.indices(cfg.seed + 1, epoch, len(dataset)))
    return list(itertools.islice(itertools.cycle(order), cfg.clips))


def solve(cfg: Trajectories, model: Transformer, batch: loader.Batch, index: int) -> Tensor:
    """States [B, timesteps + 1, F, C, H, W] from noise to the end; the noise is the batch's own."""
    ode = Sampler(steps=cfg.steps, shift=cfg.shift)
    path = sampler.trajectory(
        model, ode, image_latent=batch.latents[:, 0], conditions=batch.conditions, num_latents=cfg.latents,
        seed=(cfg.seed, index),
    )  # fmt: skip
    return kept(path, cfg.timesteps)


def kept(path: Iterable[tuple[float, Tensor]], timesteps: Sequence[float]) -> Tensor:
    """The states [B, timesteps + 1, F, C, H, W] of a path at some of its timesteps and at the end."""
    wanted = [one_digit(time) for time in (*timesteps, 0.0)]
    found = {one_digit(time): latents for time, latents in path if one_digit(time) in wanted}
    return torch.stack([found[time] for time in wanted], 1)


def write(path: Path, states: Tensor, conditions: Conditions, timesteps: Sequence[float]) -> None:
    """States [B, timesteps + 1, F, C, H, W] and their conditions; written beside, then renamed."""
    beside = path.with_name(f".{path.name}.new")
    tensors = {"states": states.half(), **{name: getattr(conditions, name) for name in CONDITIONS}}
    on_host = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_host, beside, metadata={"timesteps": json.dumps(list(timesteps))})
    beside.replace(path)


class Solved:
    """Trajectories by number, left on disk: at 480x832 a thousand of 20 s take 82 GB. A call reads what it gives."""

    def __init__(self, files: Sequence[Path]) -> None:
        """files: whole batches; ValueError where they differ."""
        self.places: list[tuple[Path, int]] = []
        self.timesteps: tuple[float, ...] = ()
        self.num_latents = 0
        for number, file in enumerate(files):
            with safe_open(file, "pt") as opened:
                batch, _, num_latents, *_ = opened.get_slice("states").get_shape()
                timesteps = tuple(json.loads(opened.metadata()["timesteps"]))
            if number and (timesteps, num_latents) != (self.timesteps, self.num_latents):
                raise ValueError(
                    f"{file} has {num_latents} latents at {timesteps}, another file {self.num_latents} at "
                    f"{self.timesteps}; trajectories of one step are needed"
                )
            self.timesteps, self.num_latents = timesteps, num_latents
            self.places += [(file, row) for row in range(batch)]

    def __len__(self) -> int:
        return len(self.places)

    def state(self, number: int, level: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Latents [start, stop) of a trajectory [stop - start, C, H, W] float16 at timesteps[level]; the end is one
        level further."""
        file, row = self.places[number]
        with safe_open(file, "pt") as opened:
            return opened.get_slice("states")[row, level, start : self.num_latents if stop is None else stop]

    def conditions(self, numbers: Iterable[int]) -> Conditions:
        """Of the whole videos."""
        rows = []
        for file, row in (self.places[number] for number in numbers):
            with safe_open(file, "pt") as opened:
                found = {name: opened.get_slice(name) for name in CONDITIONS}
                rows.append({name: x[0 if name == "empty" else row] for name, x in found.items()})
        joined = {name: torch.stack([found[name] for found in rows]) for name in CONDITIONS}
        return Conditions(**{**joined, "empty": joined["empty"][:1]})


def load(folders: list[Path], timesteps: tuple[float, ...], latents: int) -> Solved:
    """The trajectories of all parts, in the batches' order, for a student of `timesteps` and `latents`."""
    solved = Solved(
        sorted((path for folder in folders for path in folder.glob("*.safetensors")), key=attrgetter("name"))
    )
    if not len(solved):
        raise ValueError('there are no trajectories; the initialisation "ode" needs trajectories.clips above 0')
    if solved.timesteps != timesteps or solved.num_latents < latents:
        raise ValueError(
            f"the trajectories have {solved.num_latents} latents at {solved.timesteps}; "
            f"the student needs {latents} at {timesteps}"
        )
    return solved


def verify(cfg: Trajectories, model: Transformer, solved: Solved, numbers: Iterable[int]) -> float:
    """The largest error of some trajectories' states, integrated again from the state before; ValueError beyond the
    tolerance. A latent's error is its root mean square difference over its root mean square."""
    times = flow.schedule(cfg.steps, cfg.shift).tolist()
    at = {one_digit(time): index for index, time in enumerate(times)}
    stops = [at[one_digit(time)] for time in (*cfg.timesteps, 0.0)]
    device, largest = next(model.parameters()).device, 0.0
    for number in numbers:
        velocity_of = sampler.velocity(model, 1.0, solved.conditions([number]).to(device))
        states = [solved.state(number, level)[None].to(device).float() for level in range(len(stops))]
        for level, (start, stop) in enumerate(itertools.pairwise(stops)):
            *_, (_, again) = sampler.integrated(velocity_of, states[level], times[start : stop + 1])
            wanted = states[level + 1]
            error = (rms(again - wanted) / rms(wanted)).max().item()
            if not error <= cfg.tolerance:
                raise ValueError(
                    f"{solved.places[number][0]}, integrated again from timestep {times[start]:.1f} to "
                    f"{times[stop]:.1f}, is off by {error:.2g} of a latent; allowed is {cfg.tolerance:g}, "
                    "so remove it and call this step again"
                )
            largest = max(largest, error)
    return largest


def rms(latents: Tensor) -> Tensor:
    """Root mean square of each latent [B, F]."""
    return latents.square().mean((-3, -2, -1)).sqrt()


def one_digit(timestep: float) -> float:
    """What names a timestep: 833.3 stands for 2500 / 3."""
    return round(timestep, 1)
