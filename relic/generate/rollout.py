"""The one rollout: a walk generated chunk by chunk by the few-step student over its compressed memory.

Serving, evaluation and distillation call it. A chunk is denoised at a few timesteps; each pass sees the remembered
latents and the chunk itself. Its clean latents then pass once more at timestep 0, and the keys and values of that pass
are what the memory keeps; with noisy context those of the last denoising pass are, and a pass is saved. Latent 0 is the
image: it stands in the first chunk at timestep 0.

Distillation replays a walk (section 4.4.2): of every chunk its last denoising pass again, with autograd, over a memory
that is filled anew from the chunks' clean latents, for the walk's own has pooled and forgotten what the chunk saw.
"""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from relic.generate.config import Rollout as Config
from relic.generate.context import Context
from relic.generate.noise import noise
from relic.geometry import actions as algorithm1
from relic.geometry.config import Actions
from relic.memory.cache import Memory
from relic.memory.pooling import pool_picture
from relic.model import flow
from relic.model.attention import KeyValue
from relic.model.conditions import Conditions
from relic.model.precision import autocast, computed_in
from relic.model.transformer import Transformer

RECENT = ("latent", "actions", "poses")


class Pass(NamedTuple):
    """The denoising pass that made a chunk's clean latents."""

    noisy: Tensor  # [B, chunk, C, H, W]
    timesteps: Tensor  # [B, chunk]
    saw: Tensor  # checksum of what the memory showed (generate/context.py)


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
        first: int = 0,
        unit: Actions | None = None,
        context: Context | None = None,
    ):
        """image_latent [B, C, H, W]; text [B, L] ids or [B, L, width]; `unit` says what a rotation of 1 is. Walks of
        one size that take turns may share a `context`. Of a batch that others share, `first` is this part's place."""
        self.model, self.cfg, self.image, self.text, self.seed, self.first = model, cfg, image_latent, text, seed, first
        self.unit = unit or Actions()
        batch, _, height, width = image_latent.shape
        device = image_latent.device
        self.memory = Memory(
            cfg.memory,
            layers=model.cfg.layers,
            batch=batch,
            rows=height // model.cfg.patch[1],
            columns=width // model.cfg.patch[2],
            heads=model.cfg.heads // model.sequence.size,
            head_width=model.cfg.head_width,
            device=device,
        )
        self.context = context or Context(self.memory, cfg, computed_in(device) or image_latent.dtype)
        self.table = model.rope_table(device)
        self.num_latents = 0  # generated so far, the image included
        self.num_frames = 1
        self.recent: deque[tuple[Tensor, Conditions]] = deque(maxlen=cfg.memory.window)  # latents of the window
        # the frames of the latest step, the first with the image's before them
        self.actions = torch.zeros(batch, 1, algorithm1.NUM_ACTIONS, device=device)
        self.actions[..., algorithm1.STATIC] = 1
        self.poses = algorithm1.integrate(self.actions, self.unit)  # [B, F_px, 4, 4] float64
        if cfg.chunk == 1:
            self._look(1)
            self._remember(image_latent[:, None])

    @property
    def num_actions(self) -> int:
        """Frames that the next chunk makes."""
        return 4 * (self.cfg.chunk - (self.num_latents == 0))

    @torch.no_grad()
    def step(self, actions: Tensor, *, exit_step: int = -1) -> Tensor:
        """New latents [B, F, C, H, W] of the next frames, whose actions are [B, num_actions, 13].

        The pass at the timestep of index `exit_step` is the last."""
        made = self.make(actions, exit_step=exit_step)
        self.keep()
        return made

    @torch.no_grad()
    def make(self, actions: Tensor, *, exit_step: int = -1) -> Tensor:
        """`step` up to where its latents are there; `keep` must follow, before anything else."""
        first = self.num_latents == 0
        self._begin(actions)
        self._made = self._denoise(range(len(self.cfg.timesteps))[exit_step] + 1)
        return self._made[0][:, 1:] if first else self._made[0]

    @torch.no_grad()
    def keep(self) -> None:
        """Remembers what was made."""
        self._remember(*self._made)
        del self._made  # with noisy context every block's keys and values

    @torch.no_grad()
    def see(self, actions: Tensor, latents: Tensor) -> None:
        """Remembers true latents [B, chunk, C, H, W], the image among the first, as if the next step had made them."""
        self._begin(actions)
        self._remember(latents)

    def replay(self, actions: Tensor, last: Pass) -> Tensor:
        """The clean latents [B, chunk, C, H, W] of a step whose last pass is known, with autograd through that pass.

        Call `remember` with the chunk's latents afterwards."""
        with torch.no_grad():
            self._begin(actions)
        clean, _ = self._clean(last.noisy, last.timesteps)
        return clean

    @torch.no_grad()
    def remember(self, clean: Tensor, last: Pass) -> None:
        """Remembers what the step did that made the clean latents [B, chunk, C, H, W] in this last pass."""
        own = None
        if self.cfg.context == "noisy":
            _, own = self._clean(last.noisy, last.timesteps, remember=True)
        self._remember(clean, own)

    def branch(self) -> "Rollout":
        """A walk that goes on from here on its own; both share the context and so take turns. A snapshot is a branch
        that is not walked on, and going back to it is another."""
        made = copy.copy(self)
        made.memory, made.recent = self.memory.branch(), self.recent.copy()
        return made

    def tensors(self) -> dict[str, Tensor]:
        """All that the walk goes on from, but for what it was begun with, by names that `load` knows; views."""
        found = {"counts": torch.tensor([self.num_latents, self.num_frames]), "pose": self.poses[:, -1:]}
        for index, (latent, of) in enumerate(self.recent):
            found |= {
                f"recent{index}.{name}": x for name, x in zip(RECENT, (latent, of.actions, of.poses), strict=True)
            }
        return found | {f"memory.{name}": x for name, x in self.memory.tensors().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on where the walk was whose `tensors` these are, which may be on another device and are copied; this one
        must be new, and begun with the same."""
        self.num_latents, self.num_frames = tensors["counts"].tolist()
        self.poses = tensors["pose"].to(self.poses, copy=True)
        self.memory.load({name.removeprefix("memory."): x for name, x in tensors.items() if name.startswith("memory.")})
        self.recent.clear()
        for index in range(sum(name.endswith(".latent") for name in tensors)):
            latent, actions, poses = (
                tensors[f"recent{index}.{name}"].to(self.image.device, copy=True) for name in RECENT
            )
            self.recent.append((latent, Conditions(actions, poses, self.text)))

    @property
    def last(self) -> Pass:
        """The last pass of the latest step; until the next walk that shares the context takes its turn."""
        return Pass(*self._last, self.context.digest())

    def _begin(self, actions: Tensor) -> None:
        if actions.shape[1] != self.num_actions:
            raise ValueError(f"{actions.shape[1]} actions were given; the next chunk takes {self.num_actions}")
        self.memory.reserve(self.cfg.chunk)
        poses = algorithm1.integrate(actions, self.unit, start=self.poses[:, -1])
        if self.num_frames == 1:
            actions, poses = torch.cat([self.actions, actions], 1), torch.cat([self.poses, poses], 1)
        self.num_frames += self.num_actions
        self.actions, self.poses = actions.float(), poses
        self._look(self.num_actions + (self.num_latents == 0))

    def _look(self, count: int) -> None:
        """The conditions of the next latents, which stand for the last `count` frames, and what they see of the
        memory."""
        self.conditions = Conditions(self.actions[:, -count:], self.poses[:, -count:].float(), self.text)
        self.cameras = self.poses[:, -count:][:, (count - 1) % 4 :: 4]  # the last frame of each latent
        self.context.fill(self.memory, self.table, self.cameras)

    def _denoise(self, num_passes: int) -> tuple[Tensor, list[KeyValue] | None]:
        """The chunk's clean latents [B, chunk, C, H, W], in the first chunk latent 0 the image; and, for noisy context,
        the keys and values of the last pass."""
        first, noisy_context = self.num_latents == 0, self.cfg.context == "noisy"
        shape, device = self.image.shape, self.image.device
        clean = torch.zeros(shape[0], self.cfg.chunk, *shape[1:], device=device)
        own: list[KeyValue] = []
        for index, time in enumerate(self.cfg.timesteps[:num_passes]):
            places = range(self.num_latents, self.num_latents + self.cfg.chunk)
            fresh = [noise((self.seed, place, index), shape, device, first=self.first) for place in places]
            timesteps = torch.full((shape[0], self.cfg.chunk), time, device=device)
            if first:
                timesteps[:, 0] = 0
                clean[:, 0] = self.image
            noisy = flow.add_noise(clean, torch.stack(fresh, 1), timesteps)
            self._last = noisy, timesteps
            clean, own = self._clean(noisy, timesteps, remember=noisy_context and index == num_passes - 1)
        return clean, own if noisy_context else None

    def _clean(self, noisy: Tensor, timesteps: Tensor, *, remember: bool = False) -> tuple[Tensor, list[KeyValue]]:
        velocity, own = self._forward(noisy, timesteps, remember=remember)
        return flow.clean_of(noisy, velocity, timesteps), own

    def _forward(self, latents: Tensor, timesteps: Tensor, *, remember: bool) -> tuple[Tensor, list[KeyValue]]:
        """One pass over the chunk: fixed addresses and, for a state of the memory, fixed shapes."""
        count = latents.shape[1]
        times = self.memory.time(self.num_latents) + torch.arange(count, device=latents.device)
        past = self.context.past(count * self.memory.whole)
        with autocast(latents.device):
            velocity, own = self.model(latents, timesteps, self.conditions, times=times, past=past, remember=remember)
        return velocity.float(), own

    @torch.no_grad()
    def _remember(self, clean: Tensor, own: list[KeyValue] | None = None) -> None:
        """Remembers a chunk's own keys and values, by default those of one pass over it at timestep 0."""
        if own is None:
            _, own = self._forward(clean, torch.zeros(clean.shape[:2], device=clean.device), remember=True)
        pooled = []
        if self.cfg.memory.pooled == "latents":
            pooled = self._encode_pooled(clean)
        keys, values = zip(*own, strict=True)
        self.memory.append(keys, values, poses=self.cameras, pooled=pooled)
        self.num_latents += clean.shape[1]

    def _encode_pooled(self, clean: Tensor) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Keys and values of each latent that is about to leave the window, itself pooled, at timestep 0, over what the
        chunk has seen; the option beside pooling its keys and values."""
        encoded, patch = [], self.model.cfg.patch[1:]
        for index in range(clean.shape[1]):
            latent = self.num_latents + index
            leaving = latent - self.cfg.memory.window
            if leaving >= 0 and (stride := self.cfg.memory.stride(leaving)):
                picture, conditions = self.recent[0]
                small = pool_picture(picture, stride, patch)[:, None]
                time = torch.full((1,), self.memory.time(leaving), device=clean.device)
                tokens = small.shape[-2] * small.shape[-1] // (patch[0] * patch[1])
                with autocast(clean.device):
                    _, own = self.model(
                        small, torch.zeros(len(clean), 1, device=clean.device), conditions, times=time,
                        past=self.context.past(tokens), pooled=(stride, self.memory.rows, self.memory.columns),
                        remember=True,
                    )  # fmt: skip
                keys, values = zip(*own, strict=True)
                encoded.append((keys, values))
            of = self.conditions
            own_frames = of.frames(4 * index, 4 * index + 4) if self.num_latents else of.latents(index, index + 1)
            self.recent.append((clean[:, index], own_frames))
        return encoded


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
        done = walk.num_frames
        yield walk.step(actions[:, done : done + walk.num_actions], exit_step=exit_step)
