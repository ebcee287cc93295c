"""How far an estimated camera track is from the one that was asked for (section 5.3 of RELIC).

E_i = (Q_i^-1 Q_{i+d})^-1 (P_i^-1 P_{i+d}), with Q the reference and P the estimate, both camera-to-world. RPE-r is E's
angle in degrees, RPE-t the length of its translation in the reference's mean steps; the paper names neither d nor its
unit. An alignment by Sim(3) cancels in E except for its scale s, and s enters RPE-t only. So s alone is found, and
an exactly straight track or one that stands still needs no special case.

s makes the *lengths* of the relative displacements agree: the median of their ratios, weighted by sqrt(length(Q)
length(P)). Lengths alone, so that a camera which goes the wrong way is wrong and not rescaled. A median, since
Umeyama's least squares answers ten frames that jump far away with s = 0.2 and so spoils all the others. That weight,
since neither a jump nor a camera that stops half way may decide. Never first to last, since loops return. The ATE is
after Umeyama's Sim(3).

Every figure of a clip ends as ok, failed or not applicable. Where the reference does not move, Umeyama gives s = 0 and
RPE-t = 0 to any drift; here RPE-t is not applicable there, and the drift is a figure of its own. Where the estimate is
malformed, stands still or has an impossible s, it failed: neither 0 nor left out, it counts like doing nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relic.data.importers.track import check_poses
from relic.evaluate.config import Trajectory
from relic.geometry import actions, align, se3

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "not applicable"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One figure of one clip."""

    status: str
    value: float | None = None  # where ok
    nothing: float | None = None  # the value of a camera that does nothing; None where not applicable
    reason: str = ""  # where not ok


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Everything about one clip. Of quantities over its frames NAME is the mean and NAME_median the median."""

    fault: str = ""  # why an estimate is malformed; what it holds is then not to be used elsewhere either
    scale: float | None  # s; None where there is none
    quantities: dict[str, Quantity]  # rpe_r_D degrees; rpe_t_D, ate mean steps; drift_D units, for D of the distances


def compare(reference: Tensor, estimate: Tensor, cfg: Trajectory, *, unit: float = 1.0) -> Errors:
    """Errors of an estimate [T, 4, 4] of the track `reference` [T, 4, 4], both camera-to-world.

    `unit` is how many of the reference's units one of the estimator's is (`usual_scale`). An estimator whose unit
    changes from clip to clip needs scale_range (0, inf) and noise_floor 0. A malformed reference raises ValueError."""
    if not unit > 0:
        raise ValueError(f"unit is {unit}; it must be positive")
    reference, fault = checked(reference, len(reference), "the reference"), ""
    try:
        estimate = checked(estimate, len(reference), "the estimate")
    except ValueError as error:
        estimate, fault = torch.eye(4, dtype=torch.float64).expand_as(reference), str(error)
    estimate = se3.pose(estimate[:, :3, :3], estimate[:, :3, 3] * unit)
    step = actions.mean_step(actions.steps(reference)[0])
    moves = bool(lengths(reference, 1).mean() > cfg.still)
    scale, lost = fit_scale(reference, estimate, cfg) if moves and not fault else (None, "")

    found: dict[str, Quantity] = {}
    resting = "" if moves else "the reference does not move"
    for d in cfg.distances:
        true, made = relative(reference, d), relative(estimate, d)
        short = "" if len(true) else f"{len(reference)} frames have no two that are {d} apart"
        turn = se3.angle_degrees(true[:, :3, :3].mT @ made[:, :3, :3])
        found |= over_frames(f"rpe_r_{d}", turn, se3.angle_degrees(true[:, :3, :3]), short, fault)
        moved = ((scale or 0.0) * made[:, :3, 3] - true[:, :3, 3]).norm(dim=-1) / step
        found |= over_frames(f"rpe_t_{d}", moved, lengths(reference, d) / step, short or resting, fault or lost)
        drift = lengths(estimate, d)
        travels = "the reference moves" if moves else ""
        found |= over_frames(f"drift_{d}", drift, torch.zeros_like(drift), short or travels, fault)
    ate = aligned_error(reference, estimate, scale) / step if scale else 0.0
    points = reference[:, :3, 3]
    spread = (points - points.mean(0)).square().sum(-1).mean().sqrt() / step
    found["ate"] = judged(float(ate), float(spread), resting, fault or lost)
    return Errors(fault=fault, scale=scale, quantities=found)


def checked(poses: Tensor, num_frames: int, what: str) -> Tensor:
    """Poses float64 [num_frames, 4, 4] with their rotations made exact; ValueError where they are not rigid motions."""
    if tuple(poses.shape) != (num_frames, 4, 4) or num_frames < 2:
        raise ValueError(
            f"{what} has the shape {tuple(poses.shape)}; it must be [{num_frames}, 4, 4], of 2 frames or more"
        )
    sound = torch.from_numpy(check_poses(poses.double().numpy(force=True), np.ones(num_frames, bool), Path(what)))
    if (poses[:, 3].cpu() - sound[:, 3]).abs().max() > 1e-6:
        raise ValueError(f"{what} has a last row that is not 0 0 0 1; positions stand in the last column")
    return sound


def relative(track: Tensor, distance: int) -> Tensor:
    """Motions [T - distance, 4, 4] from each pose of a track [T, 4, 4] to the one `distance` frames on."""
    return se3.inverse(track[:-distance]) @ track[distance:]


def lengths(track: Tensor, distance: int) -> Tensor:
    """How far [T - distance] a track [T, 4, 4] gets in `distance` frames."""
    return (track[distance:, :3, 3] - track[:-distance, :3, 3]).norm(dim=-1)


def fit_scale(reference: Tensor, estimate: Tensor, cfg: Trajectory) -> tuple[float | None, str]:
    """The scale of an estimate, or None and why it has failed."""
    path = float(lengths(estimate, 1).mean() / lengths(reference, 1).mean())
    if path <= cfg.noise_floor:
        return None, f"the estimated path is {path:.2g} of the reference's; up to {cfg.noise_floor:g} it is noise"
    scale, (low, high) = usual_scale([reference], [estimate], cfg), cfg.scale_range
    if not (scale > 0 and low <= scale <= high):
        return None, f"the scale is {scale:.3g}; {low:g} to {high:g} is allowed"
    return scale, ""


def usual_scale(references: Sequence[Tensor], estimates: Sequence[Tensor], cfg: Trajectory) -> float:
    """The scale common to several estimates [T, 4, 4]; over true videos, the estimator's unit in the references'. 0
    where none moves when its reference does.

    Displacements over the longest distance, or a quarter of a shorter track: the estimator's jitter averages out."""
    pairs = [
        (lengths(q, d), lengths(p, d))
        for q, p in zip(references, estimates, strict=True)
        for d in [max(1, min(max(cfg.distances), len(q) // 4))]
    ]
    true, made = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if not (true * made).any():
        return 0.0
    ratio, order = (true[made > 0] / made[made > 0]).sort()
    weight = (true * made)[made > 0][order].sqrt().cumsum(0)
    return float(ratio[torch.searchsorted(weight, weight[-1:] / 2)])


def aligned_error(reference: Tensor, estimate: Tensor, scale: float) -> Tensor:
    """Root mean square distance [] of the positions after Umeyama's similarity; `scale` only keeps numbers moderate."""
    target, source = reference[:, :3, 3], scale * estimate[:, :3, 3]
    s, rotation, translation = align.umeyama(source, target)
    return (target - (s * source @ rotation.mT + translation)).square().sum(-1).mean().sqrt()


def check_direction(references: Sequence[Tensor], estimates: Sequence[Tensor]) -> None:
    """Refuse an estimator that gives world-to-camera poses: on true videos, the inverses of its tracks [T, 4, 4] then
    turn like the references and the tracks do not. Videos in which nothing turns cannot tell."""

    def off(tracks: Sequence[Tensor]) -> float:
        pairs = zip(references, tracks, strict=True)
        turns = [relative(q, 1)[:, :3, :3].mT @ relative(p, 1)[:, :3, :3] for q, p in pairs]
        return float(se3.angle_degrees(torch.cat(turns)).mean())

    said, inverse = off(estimates), off([se3.inverse(track) for track in estimates])
    if inverse < 0.5 * said:
        raise ValueError(
            f"the estimates of {len(estimates)} true videos turn {said:.2f} degrees a frame off and their inverses "
            f"{inverse:.2f}; they must be camera-to-world, and these seem to be world-to-camera"
        )


def over_frames(name: str, errors: Tensor, nothing: Tensor, absent: str, fault: str) -> dict[str, Quantity]:
    """The mean and the median over a clip's frames [N]."""
    if not len(errors):
        return dict.fromkeys((name, f"{name}_median"), judged(0.0, 0.0, absent, fault))
    return {
        name: judged(float(errors.mean()), float(nothing.mean()), absent, fault),
        f"{name}_median": judged(float(errors.quantile(0.5)), float(nothing.quantile(0.5)), absent, fault),
    }


def judged(value: float, nothing: float, absent: str, fault: str) -> Quantity:
    """A quantity that is not applicable for the reason `absent`, has failed for the reason `fault`, or is ok."""
    if absent:
        return Quantity(status=NOT_APPLICABLE, reason=absent)
    if fault:
        return Quantity(status=FAILED, nothing=nothing, reason=fault)
    return Quantity(status=OK, value=value, nothing=nothing)


def summarise(clips: Sequence[Errors], cfg: Trajectory) -> dict[str, dict]:
    """Every quantity over clips, as `over_clips` gives it."""
    return {name: over_clips([clip.quantities[name] for clip in clips], cfg) for name in clips[0].quantities}


def over_clips(quantities: Sequence[Quantity], cfg: Trajectory) -> dict:
    """Mean and median over the clips with their 95 % bootstrap intervals, failures counted; mean_ok without them.

    A failure counts as a camera that does nothing, and where that is little to ask (a reference that does not turn)
    as the mean of what is ok, so that no failure improves a score. do_nothing is the floor: every camera still."""
    asked = [q for q in quantities if q.status != NOT_APPLICABLE]
    ok = [q.value for q in asked if q.value is not None]
    mean_ok = sum(ok) / len(ok) if ok else 0.0
    nothing = np.array([q.nothing for q in asked], float)
    counted = np.array([max(q.nothing or 0.0, mean_ok) if q.value is None else q.value for q in asked])
    measured = bool(ok) or bool(counted.any())  # where all have failed and doing nothing is right, there is no score
    found: dict = {
        "n_ok": len(ok),
        "n": len(asked),
        "mean_ok": mean_ok if ok else None,
        "do_nothing": float(nothing.mean()) if asked else None,
    }
    draws = np.random.default_rng(cfg.seed).integers(max(len(asked), 1), size=(cfg.resamples, len(asked)))
    for name, reduce in (("mean", np.mean), ("median", np.median)):
        found[name] = float(reduce(counted)) if measured else None
        interval = np.percentile(reduce(counted[draws], 1), (2.5, 97.5)).tolist() if measured else None
        found[f"{name}_interval"] = interval if len(asked) > 1 else None
    return found


def common(models: Mapping[str, Sequence[Errors]]) -> dict[str, list[Errors]]:
    """Models' errors over the same clips, each quantity kept where it is ok for all of them: what can be compared."""
    kept: dict[str, list[Errors]] = {name: [] for name in models}
    for clips in zip(*models.values(), strict=True):
        lacking = {
            name: Quantity(status=NOT_APPLICABLE, reason="not ok for every model")
            for name in clips[0].quantities
            if any(clip.quantities[name].status != OK for clip in clips)
        }
        for name, clip in zip(models, clips, strict=True):
            kept[name].append(replace(clip, quantities=clip.quantities | lacking))
    return kept
