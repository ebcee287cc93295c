"""The one rollout: a walk generated chunk by chunk by the few-step student over its compressed memory.

Serving, evaluation and distillation call it. A chunk is denoised at a few timesteps; each pass sees the remembered
latents and the chunk itself. Its clean latents then pass once more at timestep 0, and the keys and values of that pass
are what the memory keeps. Latent 0 is the image: it stands in the first chunk at timestep 0.

Distillation replays a walk (section 4.4.2): of every chunk its last denoising pass again, with autograd, over a memory
that is filled anew from the chunks' clean latents, for the walk's own has pooled and forgotten what the chunk saw.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from relic.generate.config import Rollout as Config
from relic.generate.noise import noise
from relic.geometry import actions as algorithm1
from relic.geometry.config import Actions
from relic.memory.cache import Memory
from relic.model import flow
from relic.model.attention import KeyValue
from relic.model.conditions import Conditions
from relic.model.precision import autocast
from relic.model.transformer import Transformer


class Pass(NamedTuple):
    """The denoising pass that made a chunk's clean latents."""

    noisy: Tensor  # [B, chunk, C, H, W]
    timesteps: Tensor  # [B, chunk]


class Rollout:
    """A walk in progress. Give `step` the actions of the next `num_actions` frames, get the latents of those frames."""

    def __init__(
        self,
        model: Transformer,
        cfg: Config,
        *,
        image_latent: Tensor,
        text: Tensor,
        seed: int,
        unit: Actions | None = None,
    ):
        """image_latent [B, C, H, W]; text [B, L] ids or [B, L, width]; `unit` says what a rotation of 1 is."""
        self.model, self.cfg, self.image, self.text, self.seed = model, cfg, image_latent, text, seed
        self.unit = unit or Actions()
        batch, _, height, width = image_latent.shape
        self.memory = Memory(
            cfg.memory,
            layers=model.cfg.layers,
            batch=batch,
            rows=height // model.cfg.patch[1],
            columns=width // model.cfg.patch[2],
            heads=model.cfg.heads,
            head_width=model.cfg.head_width,
            device=image_latent.device,
        )
        self.num_latents = 0  # generated so far, the image included
        self.past: list[KeyValue] | None = None
        still = torch.zeros(batch, 1, algorithm1.NUM_ACTIONS, device=image_latent.device)
        still[..., algorithm1.STATIC] = 1
        self.actions = still
        self.poses = algorithm1.integrate(still, self.unit)  # [B, F_px, 4, 4] float64
        if cfg.chunk == 1:
            self._look(1)
            self.remember(image_latent[:, None])

    @property
    def num_actions(self) -> int:
        """Frames that the next chunk makes."""
        return 4 * (self.cfg.chunk - (self.num_latents == 0))

    @torch.no_grad()
    def step(self, actions: Tensor, *, exit_step: int = -1) -> Tensor:
        """New latents [B, F, C, H, W] of the next frames, whose actions are [B, num_actions, 13].

        The pass at the timestep of index `exit_step` is the last; `self.last` is what it was given."""
        first = self.num_latents == 0
        self._begin(actions)
        clean = self._denoise(range(len(self.cfg.timesteps))[exit_step] + 1)
        self.remember(clean)
        return clean[:, 1:] if first else clean

    @torch.no_grad()
    def see(self, actions: Tensor, latents: Tensor) -> None:
        """Remembers given latents [B, chunk, C, H, W] of the next frames, in the first chunk the image's too, as if
        they had been generated; `actions` are those that `step` would take."""
        self._begin(actions)
        self.remember(latents)

    def replay(self, actions: Tensor, last: Pass) -> Tensor:
        """The clean latents [B, chunk, C, H, W] of a step whose last pass is known, with autograd through that pass.

        Call `remember` with the chunk's latents afterwards: what the graph has read of the memory must stay till then.
        """
        with torch.no_grad():
            self._begin(actions)
        return self._clean(last)

    @torch.no_grad()
    def remember(self, clean: Tensor) -> None:
        """Remembers the chunk's clean latents [B, chunk, C, H, W] by one pass at timestep 0."""
        _, own = self._forward(clean, torch.zeros(clean.shape[:2], device=clean.device), remember=True)
        self.memory.append(torch.stack([kv.keys for kv in own]), torch.stack([kv.values for kv in own]))
        self.num_latents += clean.shape[1]
        self.past = None  # a copy of the memory in full precision: a walk that waits holds none

    def _begin(self, actions: Tensor) -> None:
        if actions.shape[1] != self.num_actions:
            raise ValueError(f"{actions.shape[1]} actions were given; the next chunk takes {self.num_actions}")
        self.memory.reserve(self.cfg.chunk)
        self.actions = torch.cat([self.actions, actions.float()], 1)
        followed = algorithm1.integrate(actions, self.unit, start=self.poses[:, -1])
        self.poses = torch.cat([self.poses, followed], 1)
        self._look(self.cfg.chunk)

    def _look(self, count: int) -> None:
        """The conditions of the next `count` latents and what they see of the memory."""
        everything = Conditions(self.actions, self.poses.float(), self.text)
        self.conditions = everything.latents(self.num_latents, self.num_latents + count)
        self.past = self._past()

    def _denoise(self, num_passes: int) -> Tensor:
        """The chunk's clean latents [B, chunk, C, H, W]; in the first chunk latent 0 is the image."""
        first = self.num_latents == 0
        shape, device = self.image.shape, self.image.device
        clean = torch.zeros(shape[0], self.cfg.chunk, *shape[1:], device=device)
        for index, time in enumerate(self.cfg.timesteps[:num_passes]):
            fresh = [noise((self.seed, self.num_latents + i, index), shape, device) for i in range(self.cfg.chunk)]
            timesteps = torch.full((shape[0], self.cfg.chunk), time, device=device)
            if first:
                timesteps[:, 0] = 0
                clean[:, 0] = self.image
            self.last = Pass(flow.add_noise(clean, torch.stack(fresh, 1), timesteps), timesteps)
            clean = self._clean(self.last)
        return clean

    def _clean(self, last: Pass) -> Tensor:
        velocity, _ = self._forward(last.noisy, last.timesteps)
        return flow.clean_of(last.noisy, velocity, last.timesteps)

    def _forward(self, latents: Tensor, timesteps: Tensor, *, remember: bool = False) -> tuple[Tensor, list[KeyValue]]:
        times = torch.tensor([self.memory.time(self.num_latents + i) for i in range(latents.shape[1])])
        with autocast(latents.device):
            velocity, own = self.model(
                latents, timesteps, self.conditions, times=times.to(latents.device), past=self.past, remember=remember
            )
        return velocity.float(), own

    def _past(self) -> list[KeyValue] | None:
        """Every block's remembered keys, rotated, and values, in the precision that attention computes in."""
        if not self.memory.slots:
            return None
        keys, values = self.memory.view()
        dtype = torch.get_autocast_dtype(keys.device.type) if autocast(keys.device)._enabled else self.image.dtype
        positions = self.memory.positions()
        bias = self.memory.log_cells() if self.cfg.memory.weigh_pooled else None
        return [
            KeyValue(self.model.rotate(k, positions).to(dtype), v.to(dtype), bias)
            for k, v in zip(keys, values, strict=True)
        ]


def play(walk: Rollout, actions: Tensor, *, num_latents: int, exit_step: int = -1) -> tuple[Tensor, list[Pass]]:
    """Walks to the end of a video: latents [B, F, C, H, W] with the image first, and every chunk's last pass.

    actions [B, 4 (F - 1) + 1, 13]; row 0, the image's, is not used."""
    latents, passes = [walk.image[:, None]], []
    for made in chunks(walk, actions, num_latents=num_latents, exit_step=exit_step):
        latents.append(made)
        passes.append(walk.last)
    return torch.cat(latents, 1), passes


def chunks(walk: Rollout, actions: Tensor, *, num_latents: int, exit_step: int = -1) -> Iterator[Tensor]:
    """The new latents of each step to the end of a video, as `play` walks it."""
    while walk.num_latents < num_latents:
        done = walk.actions.shape[1]
        yield walk.step(actions[:, done : done + walk.num_actions], exit_step=exit_step)
