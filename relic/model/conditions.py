"""What a video is conditioned on: actions, poses and text."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

PADDING = torch.zeros(1, 1, dtype=torch.int64)  # the empty prompt's token ids, all alike


@dataclass(frozen=True)
class Conditions:
    """Conditions of the same frames; text is token ids [B, L] (tiny) or embeddings [B, L, text width] (umT5)."""

    actions: Tensor  # [B, F_px, 13] float32
    poses: Tensor  # [B, F_px, 4, 4] float32, camera-to-world, integrated from the actions
    text: Tensor
    empty: Tensor = PADDING  # the empty prompt as one such text

    def to(self, device: torch.device | str) -> "Conditions":
        moved = (self.actions.to(device), self.poses.to(device), self.text.to(device), self.empty.to(device))
        return Conditions(*moved)

    def rows(self, rows: Tensor | slice) -> "Conditions":
        """The conditions of some of the videos."""
        return Conditions(self.actions[rows], self.poses[rows], self.text[rows], self.empty)

    def frames(self, start: int, stop: int) -> "Conditions":
        """The conditions of the frames [start, stop)."""
        return replace(self, actions=self.actions[:, start:stop], poses=self.poses[:, start:stop])

    def latents(self, start: int, stop: int) -> "Conditions":
        """The conditions of the frames that the latents [start, stop) stand for: latent 0 is frame 0 alone."""
        return self.frames(max(0, 4 * start - 3), 4 * stop - 3)

    def with_text(self, text: Tensor) -> "Conditions":
        return replace(self, text=text)

    def without_text(self, dropped: Tensor) -> "Conditions":
        """The empty prompt for the videos where `dropped` [B] is true."""
        assert self.empty.dtype == self.text.dtype, "embeddings need the embedding of the empty prompt"
        return self.with_text(torch.where(dropped.view(-1, *[1] * (self.text.ndim - 1)), self.empty, self.text))
