"""RELIC's two control paths (section 4.1.2): actions into the hidden states, poses into queries and keys.

Each is a temporal patchify (four frames to one latent; the first latent is frame 0 alone, repeated) and an MLP. Every
block has its own last layer, zero at the start, so that an untrained RELIC equals Wan.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

POSE_WIDTH = 12  # position (3) and rotation matrix (9): no jumps, unlike angles


def by_latent(frames: Tensor) -> Tensor:
    """Per-frame rows [B, F_px, C] as [B, F, 4 C]; 4n + 1 frames begin with frame 0, which is repeated three times."""
    if frames.shape[1] % 4 == 1:
        frames = torch.cat([frames[:, :1].expand(-1, 3, -1), frames], 1)
    return rearrange(frames, "b (f s) c -> b f (s c)", s=4)


def pose_features(poses: Tensor, position_scale: float) -> Tensor:
    """Features [B, F_px, 12] of camera-to-world poses [B, F_px, 4, 4]."""
    position, rotation = poses[..., :3, 3] * position_scale, poses[..., :3, :3].flatten(-2)
    return torch.cat([position, rotation], -1).float()


class ControlEncoder(nn.Module):
    """Frames' features [B, F_px, C] to one embedding a block and latent: [layers][B, F, D]."""

    def __init__(self, features: int, hidden: int, width: int, layers: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(4 * features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        outputs = [nn.Linear(hidden, width) for _ in range(layers)]
        for output in outputs:
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)
        self.outputs = nn.ModuleList(outputs)

    def forward(self, frames: Tensor) -> list[Tensor]:
        hidden = self.hidden(by_latent(frames))
        return [output(hidden) for output in self.outputs]
