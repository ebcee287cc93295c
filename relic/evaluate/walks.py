"""The held-out walks that models are measured on."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relic.data import clip, palindrome
from relic.geometry import actions
from relic.geometry.config import Actions
from relic.model.conditions import Conditions
from relic.pretrained.words import Words


@dataclass(frozen=True)
class Walks:
    """Test walks of one region, all of one length."""

    region: str
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    places: tuple[str, ...]
    frames: np.ndarray  # uint8 [n, F_px, H, W, 3]
    actions: Tensor  # [n, F_px, 13]
    poses: Tensor  # [n, F_px, 4, 4], integrated from the actions: what models are given
    fps: float

    def __len__(self) -> int:
        return len(self.ids)

    def conditions(self, words: Words, order: list[int] | None = None) -> Conditions:
        """Conditions of the walks; with `order`, walk i gets the actions of walk order[i] and keeps its own caption."""
        rows = order if order is not None else list(range(len(self)))
        return Conditions(self.actions[rows].float(), self.poses[rows].float(), words(list(self.captions)), words([""]))

    def first(self, count: int) -> "Walks":
        """At most so many of the walks."""
        part = slice(count)
        return replace(
            self, ids=self.ids[part], captions=self.captions[part], places=self.places[part],
            frames=self.frames[part], actions=self.actions[part], poses=self.poses[part],
        )  # fmt: skip

    def following(self, script: Tensor, unit: Actions) -> "Walks":
        """The walks' first frames with the actions [T, 13] of a script; of its frames only the first is known."""
        moves = script.expand(len(self), -1, -1)
        return replace(self, frames=self.frames[:, :1], actions=moves, poses=actions.integrate(moves, unit))

    def returning(self, unit: Actions) -> "Walks":
        """Walks that turn after two thirds and go back the same way, of as many frames: back at places that neither the
        window nor the first frame shows. Actions are annotated anew, without dead-zones, for what they leave out would
        keep the walk from closing."""
        there = palindrome.indices(self.frames.shape[1], 2 * (self.frames.shape[1] - 1) // 3)
        exact = replace(unit, translation_dead_zone=1e-6, rotation_dead_zone=1e-6)  # rounding is no motion
        moves = actions.annotate(self.poses[:, there], exact)
        return replace(self, frames=self.frames[:, there], actions=moves, poses=actions.integrate(moves, unit))

    def others(self) -> list[int]:
        """For every walk another one, whose actions it is confronted with: half the list further on."""
        return [(i + len(self) // 2) % len(self) for i in range(len(self))]


def as_frames(videos: np.ndarray) -> Tensor:
    """Frames [n, F_px, 3, H, W] float32 in 0..1 of videos uint8 [n, F_px, H, W, 3]."""
    return torch.from_numpy(videos).movedim(-1, 2).float().div(255)


def read(folders: list[Path], region: str, most: int, num_frames: int, unit: Actions) -> Walks | None:
    """The first `most` kept walks of a region, cut to `num_frames`; None where fewer than two can swap their actions.

    Actions come from the whole clip, as in the shards: the scale of a clip is its own mean step."""
    clips = [clip.read_clip(folder, entry) for folder, entry in clip.entries_of(folders, (region,))[:most]]
    if len(clips) < 2:
        return None
    for found in clips:
        if len(found.frames) < num_frames:
            raise ValueError(
                f"clip {found.id} has {len(found.frames)} frames; the walks of this evaluation need {num_frames}"
            )
    annotated = torch.stack([actions.annotate(torch.from_numpy(c.poses), unit) for c in clips])[:, :num_frames]
    return Walks(
        region=region,
        ids=tuple(c.id for c in clips),
        captions=tuple(c.caption for c in clips),
        places=tuple(c.place for c in clips),
        frames=np.stack([c.frames[:num_frames] for c in clips]),
        actions=annotated,
        poses=actions.integrate(annotated, unit),
        fps=clips[0].fps,
    )
