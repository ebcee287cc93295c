"""Algorithm 1 of RELIC: a camera's track becomes 13 non-negative action magnitudes a frame, and back (eq. 3).

With R_t world-to-camera and P_t the position: dP_t = R_t (P_{t+1} - P_t), divided by the clip's mean non-zero step, and
dR_t = R_{t+1} R_t^T. A pose here is camera-to-world, C_t = R_t^T, so the camera's own turn is C_t^T C_{t+1} = dR_t^T;
it is read as intrinsic yaw, pitch, roll (Unreal's order) about the camera's down, right and forward axes.
"""

import math

import torch
from torch import Tensor

from relic.geometry import se3
from relic.geometry.config import ACTIONS, Actions

NUM_ACTIONS = len(ACTIONS)
STATIC = ACTIONS.index("static")


def steps(poses: Tensor) -> tuple[Tensor, Tensor]:
    """Camera-frame displacements [..., T-1, 3] and turns [..., T-1, 3, 3] between successive poses [..., T, 4, 4]."""
    relative = se3.inverse(poses[..., :-1, :, :]) @ poses[..., 1:, :, :]
    return relative[..., :3, 3], relative[..., :3, :3]


def mean_step(displacements: Tensor) -> Tensor:
    """Mean length [...] of the non-zero displacements [..., T, 3]; 1 where nothing moves."""
    length = displacements.norm(dim=-1)
    moving = length > 1e-9
    mean = (length * moving).sum(-1) / moving.sum(-1).clamp(min=1)
    return torch.where(moving.any(-1), mean, 1.0)


def yaw_pitch_roll(turn: Tensor) -> Tensor:
    """Angles [..., 3] in radians with turn [..., 3, 3] = Ry(yaw) Rx(pitch) Rz(roll).

    Right, up and clockwise are positive.
    """
    yaw = torch.atan2(turn[..., 0, 2], turn[..., 2, 2])
    pitch = torch.asin((-turn[..., 1, 2]).clamp(-1, 1))
    roll = torch.atan2(turn[..., 1, 0], turn[..., 1, 1])
    return torch.stack([yaw, pitch, roll], -1)


def signed(actions: Tensor) -> Tensor:
    """Signed motion [..., 6] (forward, right, up, tilt up, pan right, roll clockwise) of actions [..., 13]."""
    return torch.stack([
        actions[..., 0] - actions[..., 1], actions[..., 3] - actions[..., 2], actions[..., 4] - actions[..., 5],
        actions[..., 6] - actions[..., 7], actions[..., 9] - actions[..., 8], actions[..., 10] - actions[..., 11],
    ], -1)  # fmt: skip


def magnitudes(motion: Tensor) -> Tensor:
    """Actions [..., 13] of a signed motion [..., 6]; static is 1 exactly where all six are 0."""
    forward, right, up, tilt, pan, roll = motion.unbind(-1)
    pairs = [forward, -forward, -right, right, up, -up, tilt, -tilt, -pan, pan, roll, -roll]
    active = torch.stack(pairs, -1).clamp(min=0)
    return torch.cat([active, (active.sum(-1, keepdim=True) == 0).to(active)], -1)


def annotate(poses: Tensor, cfg: Actions, *, step: Tensor | None = None) -> Tensor:
    """Actions [..., T, 13] of a track of camera-to-world poses [..., T, 4, 4].

    Row 0 is static, row t leads to frame t. A displacement counts in steps [...]; by default the clip's own mean step.
    """
    displacement, turn = steps(poses)
    displacement = displacement / (mean_step(displacement) if step is None else step)[..., None, None]
    yaw, pitch, roll = (torch.rad2deg(yaw_pitch_roll(turn)) / cfg.degrees_per_unit).unbind(-1)
    x, y, z = displacement.unbind(-1)
    motion = torch.stack([z, x, -y, pitch, yaw, roll], -1)
    zone = torch.tensor([cfg.translation_dead_zone] * 3 + [cfg.rotation_dead_zone] * 3).to(motion)
    motion = torch.where(motion.abs() > zone, motion, 0.0)
    motion = torch.cat([torch.zeros_like(motion[..., :1, :]), motion], -2)
    return magnitudes(motion)


def integrate(actions: Tensor, cfg: Actions, start: Tensor | None = None) -> Tensor:
    """Poses [..., T, 4, 4] of actions [..., T, 13]: P_{t+1} = P_t + R_t^T dP_t, R_{t+1} = dR_t R_t (eq. 3).

    Row t's motion leads to pose t. Without `start` ([..., 4, 4], the pose before row 0) it begins at the identity.
    Positions are in mean steps of the clip."""
    forward, right, up, pitch, yaw, roll = signed(actions.double()).unbind(-1)
    radians = math.radians(cfg.degrees_per_unit)
    turn = (
        se3.axis_rotation(1, yaw * radians)
        @ se3.axis_rotation(0, pitch * radians)
        @ se3.axis_rotation(2, roll * radians)
    )
    relative = se3.pose(turn, torch.stack([right, -up, forward], -1))
    return se3.chain(torch.eye(4).to(relative) if start is None else start.double(), relative)
