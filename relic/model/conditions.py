"""What a video is conditioned on: actions, poses and text."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """Conditions of the same frames; text is token ids [B, L] (tiny) or embeddings [B, L, text width] (umT5)."""

    actions: Tensor  # [B, F_px, 13] float32
    poses: Tensor  # [B, F_px, 4, 4] float32, camera-to-world, integrated from the actions
    text: Tensor

    def to(self, device: torch.device | str) -> "Conditions":
        return Conditions(self.actions.to(device), self.poses.to(device), self.text.to(device))

    def frames(self, start: int, stop: int) -> "Conditions":
        """The conditions of the frames [start, stop)."""
        return Conditions(self.actions[:, start:stop], self.poses[:, start:stop], self.text)

    def latents(self, start: int, stop: int) -> "Conditions":
        """The conditions of the frames that the latents [start, stop) stand for: latent 0 is frame 0 alone."""
        return self.frames(max(0, 4 * start - 3), 4 * stop - 3)

    def with_text(self, text: Tensor) -> "Conditions":
        return Conditions(self.actions, self.poses, text)
