"""Rotations and rigid motions. Float64 throughout; a pose is a camera-to-world 4x4."""

import torch
from torch import Tensor


def pose(rotation: Tensor, position: Tensor) -> Tensor:
    """Poses [..., 4, 4] of rotations [..., 3, 3] and positions [..., 3]."""
    shape = torch.broadcast_shapes(rotation.shape[:-2], position.shape[:-1])
    out = torch.zeros(*shape, 4, 4, dtype=rotation.dtype, device=rotation.device)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = position
    out[..., 3, 3] = 1
    return out


def inverse(poses: Tensor) -> Tensor:
    """Inverse of rigid motions [..., 4, 4]."""
    rotation = poses[..., :3, :3].mT
    return pose(rotation, -(rotation @ poses[..., :3, 3:])[..., 0])


def chain(start: Tensor, motions: Tensor) -> Tensor:
    """Poses [..., T, 4, 4] that come from `start` [..., 4, 4] by motions [..., T, 4, 4], each in the frame of the pose
    before it."""
    track = [start]
    for motion in motions.unbind(-3):
        track.append(track[-1] @ motion)
    return torch.stack(track[1:], -3)


def hat(vector: Tensor) -> Tensor:
    """The skew matrix [..., 3, 3] with hat(a) b = a x b."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def exp(rotation_vector: Tensor) -> Tensor:
    """Rotation [..., 3, 3] of an axis-angle vector [..., 3] in radians."""
    return torch.linalg.matrix_exp(hat(rotation_vector))


def log(rotation: Tensor) -> Tensor:
    """Axis-angle vector [..., 3] in radians of a rotation [..., 3, 3]; the angle is in [0, pi]."""
    quaternion = quaternion_wxyz(rotation)
    w, xyz = quaternion[..., :1], quaternion[..., 1:]
    sine = xyz.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, w)
    return torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), 2.0) * xyz


def quaternion_wxyz(rotation: Tensor) -> Tensor:
    """Unit quaternion (w, x, y, z) [..., 4] with w >= 0 of a rotation [..., 3, 3]: the top eigenvector of Bar-Itzhack's
    matrix, stable at every angle."""
    r = rotation
    k = torch.stack([
        r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2], r[..., 2, 1] - r[..., 1, 2],
        r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1],
        r[..., 2, 1] - r[..., 1, 2], r[..., 0, 0] - r[..., 1, 1] - r[..., 2, 2],
        r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0],
        r[..., 0, 2] - r[..., 2, 0], r[..., 0, 1] + r[..., 1, 0],
        r[..., 1, 1] - r[..., 0, 0] - r[..., 2, 2], r[..., 1, 2] + r[..., 2, 1],
        r[..., 1, 0] - r[..., 0, 1], r[..., 0, 2] + r[..., 2, 0],
        r[..., 1, 2] + r[..., 2, 1], r[..., 2, 2] - r[..., 0, 0] - r[..., 1, 1],
    ], -1).unflatten(-1, (4, 4)) / 3  # fmt: skip
    quaternion = torch.linalg.eigh(k).eigenvectors[..., -1]
    return quaternion * torch.where(quaternion[..., :1] < 0, -1.0, 1.0)


def angle_degrees(rotation: Tensor) -> Tensor:
    """Angle [...] in degrees of a rotation [..., 3, 3], exact near 0 and near 180."""
    return torch.rad2deg(log(rotation).norm(dim=-1))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation [..., 3, 3] nearest to a matrix in the Frobenius norm."""
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vh)
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1)
    return u @ vh


def axis_rotation(axis: int, angle: Tensor) -> Tensor:
    """Rotation [..., 3, 3] about axis 0, 1 or 2 by an angle [...] in radians (right-hand rule)."""
    cosine, sine = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    about_x = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], -1).unflatten(-1, (3, 3))
    return about_x.roll((axis, axis), (-2, -1))
