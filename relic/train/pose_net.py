"""Trains the pose estimator on recorded walks, and measures it on held-out ones: the floor of all trajectory errors.

It will read generated videos, so the pictures that it learns from are blurred, smeared in time, lit otherwise and
noisy. Mirrored and reversed walks need no showing: the network reads them alike by construction.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relic.data import clip
from relic.geometry import actions, se3
from relic.model import config, weights
from relic.model.pose_net import PoseNet, motions, pictures, relative
from relic.model.precision import autocast
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import optimizer
from relic.train.checkpoint import Checkpoints
from relic.train.codec import as_batch
from relic.train.config import PoseNetTraining
from relic.train.fragments import Whole
from relic.train.watch import Watch

GREY = 0.4  # about which contrast is changed


class Walk(NamedTuple):
    pictures: Tensor  # uint8 [T, height, width], luminance
    poses: Tensor  # float64 [T, 4, 4]


def main(cfg: PoseNetTraining, *, clips: list[Path], out: Path, run: Run, mesh: Mesh | None = None) -> dict[str, float]:
    """Writes model.safetensors and config.json; returns errors a frame on the known-map test clips before and after,
    and of an estimate that nothing moves: degrees of rotation, and mean steps of translation (`errors`)."""
    mesh = mesh or Mesh()
    device, rows = mesh.device, mesh.rows(cfg.batch)
    torch.manual_seed(cfg.seed)
    net = PoseNet(cfg.model).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, test = walks_of(clips, "train", cfg.model), walks_of(clips, "known", cfg.model)
    net.units.copy_(units_of(train))
    optimizers = optimizer.Optimizers(net, cfg.optimizer)
    still = errors([0 * motions(walk.poses) for walk in test], test, net.units[0].item())
    before = measure(net, test)
    parts = [Whole("pose_net/weights", net.state_dict()), Whole("pose_net", optimizers.state())]
    checkpoints = Checkpoints(cfg.checkpoint.place(out), parts, mesh, cfg.checkpoint)

    with Watch(run, mesh, folder=out, stages=[("pose-net", cfg.steps)]) as watch:
        for step in range(checkpoints.load(), cfg.steps):
            generator = np.random.default_rng((cfg.seed, step))
            shown, true = pieces(train, cfg, generator)
            shown = spoilt(shown.to(device), cfg, generator)[rows.start : rows.stop]
            with autocast(device):
                estimated = net(shown)
            target = (true[rows.start : rows.stop].to(device) / net.units).float()
            loss = 6 * functional.smooth_l1_loss(estimated, target, beta=0.1)
            loss.backward()
            watch.computed()
            loss = mesh.reduced(net, loss)
            optimizer.update(net, optimizers, loss, cfg.optimizer, optimizer.rate(cfg.optimizer, step, cfg.steps))
            watch.step(step, {"loss": loss.item()}, note=f"loss {loss.item():.4f}")
            checkpoints.after(step + 1, watch)

    checkpoints.close()
    if mesh.is_first:
        weights.save(net, out)
    after = measure(net, test)
    return {
        "rot_deg_before": before[0],
        "rot_deg": after[0],
        "rot_deg_still": still[0],
        "trans_before": before[1],
        "trans": after[1],
        "trans_still": still[1],
        "seen_frames": cfg.steps * cfg.batch * cfg.piece_frames,
    }


def walks_of(folders: list[Path], region: str, size: config.PoseNet) -> list[Walk]:
    """Every kept clip of a region, as the network sees it."""
    walks = []
    for found in clip.read_region(folders, region):
        shown = pictures(as_batch(found.frames, "cpu"), size)[0].mul(255).round().byte()
        walks.append(Walk(shown, torch.from_numpy(found.poses)))
    return walks


def units_of(walks: list[Walk]) -> Tensor:
    """The mean non-zero step, three times, and the mean non-zero turn in radians, float64 [6]."""
    step, turn = torch.cat([motions(walk.poses) for walk in walks]).split(3, -1)
    return torch.stack([actions.mean_step(step)] * 3 + [actions.mean_step(turn)] * 3)


def pieces(walks: list[Walk], cfg: PoseNetTraining, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random pieces of walks: pictures float32 [B, F_px, height, width] and motions float64 [B, F_px - 1, 6]."""
    shown, poses = [], []
    count = min(cfg.piece_frames, *(len(walk.poses) for walk in walks))
    for _ in range(cfg.batch):
        walk = walks[generator.integers(len(walks))]
        stride = 2 if generator.random() < cfg.skipping and len(walk.poses) >= 2 * count - 1 else 1
        first = generator.integers(len(walk.poses) - stride * (count - 1))
        piece = slice(first, first + stride * (count - 1) + 1, stride)
        shown.append(walk.pictures[piece])
        poses.append(walk.poses[piece])
    return torch.stack(shown).float().div(255), motions(torch.stack(poses))


def spoilt(shown: Tensor, cfg: PoseNetTraining, generator: np.random.Generator) -> Tensor:
    """Pictures [B, F_px, height, width] blurred, smeared over time, lit otherwise and noisy, each piece in its own way;
    blur and smear spare half of the pieces."""

    def drawn(low: float, high: float) -> Tensor:
        values = generator.uniform(low, high, (len(shown), 1, 1, 1)).clip(min=0 if low < 0 < high else low)
        return torch.from_numpy(values).to(shown)

    share, offset = drawn(-cfg.smear, cfg.smear), int(generator.integers(4))
    groups = [shown[:, max(first, 0) : first + 4] for first in range(offset - 4, shown.shape[1], 4) if first > -4]
    shown = torch.cat([torch.lerp(group, group.mean(1, keepdim=True), share) for group in groups], 1)
    smooth = functional.avg_pool2d(shown, 3, 1, 1, count_include_pad=False)
    shown = torch.lerp(shown, smooth, drawn(-cfg.blur, cfg.blur))
    shown = (shown - GREY) * drawn(0.7, 1.3) + GREY + 0.1 * (2 * drawn(0, 1) - 1)
    noise = torch.from_numpy(generator.standard_normal(shown.shape, np.float32)).to(shown)
    return shown + drawn(0, cfg.noise) * noise


@torch.inference_mode()
def measure(net: PoseNet, walks: list[Walk]) -> tuple[float, float]:
    """Errors of the network on whole walks."""
    device = net.units.device
    shown = [walk.pictures[None].to(device).float().div(255) for walk in walks]
    estimated = [(net(pictures)[0] * net.units).double().cpu() for pictures in shown]
    return errors(estimated, walks, net.units[0].item())


def errors(estimated: list[Tensor], walks: list[Walk], unit: float) -> tuple[float, float]:
    """Mean errors a frame of estimated motions [T - 1, 6]: of the rotation in degrees, and of the displacement in
    units, after the one scale a walk that is best by least squares; pictures alone do not tell it."""
    turned, moved = [], []
    for motion, walk in zip(estimated, walks, strict=True):
        made = relative(motion)
        displacement, turn = made[..., :3, 3], made[..., :3, :3]
        true_displacement, true_turn = actions.steps(walk.poses)
        scale = (displacement * true_displacement).sum() / displacement.square().sum().clamp(min=1e-12)
        turned.append(se3.angle_degrees(turn.mT @ true_turn))
        moved.append((scale.clamp(min=0) * displacement - true_displacement).norm(dim=-1) / unit)
    return torch.cat(turned).mean().item(), torch.cat(moved).mean().item()
