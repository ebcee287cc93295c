"""The pose estimator: reads the camera's motion off a video, by optical flow and a small network.

The flow is computed, not learned: Lucas and Kanade's (1981), from coarse to fine. On 160 walks of the demo and after a
minute on one core, a convolutional network over pairs of frames is left with 63 % of the error in rotation that a still
camera makes, this one with 22 %. A step's motion is read from the flow of the steps around it too, for a generated
frame is less sure than a recorded one. Two symmetries hold whatever the weights: a video played backwards gives the
inverse motions, so a frozen one gives none, and a mirrored one gives the mirrored motions.

A motion is six numbers: the displacement right, down and forward, along the axes of the camera halfway through its
turn, then the rotation vector in radians. The inverse motion is its negative.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from relic.geometry import actions, se3
from relic.model import config
from relic.model.codec import conv3

LUMA = (0.299, 0.587, 0.114)
LEVELS = 3  # the picture, its half and its quarter
CELL = 4  # pixels a side of the cells that have a flow; it is fitted over twice as many
MIRROR = (-1.0, 1.0, 1.0, 1.0, -1.0, -1.0)  # signs of a motion seen in a mirror: it swaps left and right


def motions(poses: Tensor) -> Tensor:
    """Motions [..., T-1, 6] between successive poses [..., T, 4, 4]."""
    displacement, turn = actions.steps(poses)
    rotation = se3.log(turn)
    halfway = se3.exp(-rotation / 2) @ displacement[..., None]
    return torch.cat([halfway[..., 0], rotation], -1)


def relative(motion: Tensor) -> Tensor:
    """The motions [..., 6] as poses float64 [..., 4, 4] in the frame of the pose before."""
    halfway, rotation = motion.double().split(3, -1)
    displacement = se3.exp(rotation / 2) @ halfway[..., None]
    return se3.pose(se3.exp(rotation), displacement[..., 0])


def integrate(motion: Tensor) -> Tensor:
    """Poses float64 [..., T, 4, 4] that start at the identity and move by motions [..., T-1, 6]."""
    steps = relative(motion)
    start = torch.eye(4).to(steps).expand(*motion.shape[:-2], 4, 4)
    return torch.cat([start[..., None, :, :], se3.chain(start, steps)], -3)


def pictures(frames: Tensor, cfg: config.PoseNet) -> Tensor:
    """Luminance [B, F_px, height, width] in 0..1, at the network's size, of frames [B, F_px, 3, H, W] in 0..1."""
    grey = torch.einsum("bfchw,c->bfhw", frames.float(), torch.tensor(LUMA, device=frames.device))
    if grey.shape[-2:] == (cfg.height, cfg.width):
        return grey
    return functional.interpolate(grey, (cfg.height, cfg.width), mode="area")


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """The picture [N, 1, H, W] sampled at each pixel's own place plus flow [N, 2, H, W] (right, down) in pixels."""
    height, width = picture.shape[-2:]
    y = torch.arange(height, device=flow.device)[:, None] + 0.5
    x = torch.arange(width, device=flow.device) + 0.5
    grid = torch.stack([(x + flow[:, 0]) * (2 / width) - 1, (y + flow[:, 1]) * (2 / height) - 1], -1)
    return functional.grid_sample(picture, grid, padding_mode="border", align_corners=False)


def flow_and_evidence(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Flow [N, 2, h, w] (right, down) in pixels from pictures [N, 1, H, W] to those a step later, and for each cell how
    well it is known and how much it leaves unexplained [N, 2, h, w].

    Both pictures are warped half the way, so that the flow back is exactly the negative. Each level adds one step of
    Gauss and Newton; the damping keeps cells without structure where the coarser level put them."""
    pyramid = [(before, after)]
    for _ in range(LEVELS - 1):
        a, b = pyramid[-1]
        pyramid.append((functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)))
    flow = before.new_zeros(len(before), 2, 1, 1)
    evidence = flow
    for a, b in reversed(pyramid):
        height, width = a.shape[-2:]
        flow = 2 * functional.interpolate(flow, (height // CELL, width // CELL), mode="bilinear")
        half = functional.interpolate(flow, (height, width), mode="bilinear") / 2
        a, b = warp(a, -half), warp(b, half)
        padded = functional.pad((a + b) / 2, (1, 1, 1, 1), mode="replicate")
        x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        t = b - a
        products = torch.cat([x * x, x * y, y * y, x * t, y * t, t.abs()], 1)
        sums = functional.avg_pool2d(products, 2 * CELL, CELL, CELL // 2, count_include_pad=False)
        xx, xy, yy, xt, yt, left = sums.unbind(1)
        xx, yy = xx + 1e-4, yy + 1e-4
        determinant = xx * yy - xy * xy
        change = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], 1) / determinant[:, None]
        flow = flow + change.clamp(-2, 2)
        evidence = torch.stack([(determinant / (xx + yy)).log() * 0.3 + 2, left * 10], 1)  # both of order 1
    return flow, evidence


class PoseNet(nn.Module):
    """Pictures [B, F_px, height, width] to motions [B, F_px - 1, 6] in `units`.

    units [6]: the training set's mean step in its world's units, three times, and its mean turn in radians."""

    units: Tensor
    mirror: Tensor

    def __init__(self, cfg: config.PoseNet):
        super().__init__()
        self.cfg = cfg
        first, second, third = cfg.widths
        cells = (cfg.height // CELL // 4) * (cfg.width // CELL // 4)
        self.layers = nn.Sequential(
            conv3(2 * (2 * cfg.reach + 1) + 2, first), nn.ReLU(),
            conv3(first, second, stride=2), nn.ReLU(),
            conv3(second, third, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(third * cells, cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, 6, bias=False),
        )  # fmt: skip
        self.register_buffer("units", torch.ones(6))
        self.register_buffer("mirror", torch.tensor(MIRROR), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        before, after = (rearrange(p, "b s h w -> (b s) 1 h w") for p in (pictures[:, :-1], pictures[:, 1:]))
        flow, evidence = flow_and_evidence(before, after)
        batch, steps = len(pictures), pictures.shape[1] - 1
        around = torch.arange(-self.cfg.reach, self.cfg.reach + 1) + torch.arange(steps)[:, None]
        window = flow.unflatten(0, (batch, steps))[:, around.clamp(0, steps - 1)].flatten(0, 1)  # [N, around, 2, h, w]
        seen = self.antisymmetric(window, evidence)
        mirrored = self.antisymmetric(window.flip(-1) * self.mirror[:2, None, None], evidence.flip(-1))
        return ((seen + self.mirror * mirrored) / 2).unflatten(0, (batch, steps))

    def antisymmetric(self, window: Tensor, evidence: Tensor) -> Tensor:
        """Motions [N, 6] of flows [N, around, 2, h, w], minus those of the same played backwards."""
        return (self.read(window, evidence) - self.read(-window.flip(1), evidence)) / 2

    def read(self, window: Tensor, evidence: Tensor) -> Tensor:
        x = torch.cat([window.flatten(1, 2), evidence], 1).contiguous(memory_format=torch.channels_last)
        return self.layers(x).float()


@torch.inference_mode()
def track(net: PoseNet, frames: Tensor) -> Tensor:
    """Camera-to-world poses float64 [B, F_px, 4, 4] of frames [B, F_px, 3, H, W] in 0..1, from the identity on.

    Positions are in mean steps of the training set, so a slow walk stays a slow walk."""
    step, turn = net(pictures(frames, net.cfg)).double().split(3, -1)
    return integrate(torch.cat([step, turn * net.units[3:]], -1))
