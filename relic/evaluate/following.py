"""Does the camera do what the actions say? An estimated track, read by Algorithm 1, against the track asked for.

Both tracks count in one step, the mean over all references. In its own mean step a pure pan's translation noise, or a
frozen video's, would be a walk at full speed. So speed is measured too, if the estimator's unit is known
(`trajectory.usual_scale` over true videos); what is under the dead-zones is nothing.

Accuracy is balanced over the signs that an axis has in the references (a share of right frames would reward doing
nothing), and chance is stated beside it. An axis that no reference uses has no figure.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from relic.geometry import actions
from relic.geometry.config import Actions

AXES = ("forward", "right", "up", "tilt_up", "pan_right", "roll_cw")  # the columns of actions.signed


def score(references: Sequence[Tensor], estimates: Sequence[Tensor | None], cfg: Actions, *, unit: float = 1.0) -> dict:
    """Following over clips: references and estimates [T, 4, 4], camera-to-world. None, for a malformed estimate
    (`trajectory.Errors.fault`), is a camera that does nothing. `unit` is how many of the references' units one of the
    estimator's is.

    axes: {axis: {balanced_accuracy, chance, slope, active} or None}; balanced_accuracy: their mean, or None;
    cross_talk: 6x6 in the order of AXES, None where there is no figure (`cross_talk`)."""
    step = actions.mean_step(torch.cat([actions.steps(track.double())[0] for track in references]))
    still = [torch.eye(4, dtype=torch.float64).expand_as(track) for track in references]
    made = [rest if track is None else track for rest, track in zip(still, estimates, strict=True)]
    true_motion = motion(references, cfg, step)
    made_motion = motion(made, cfg, step / unit)
    axes = {name: follows(true_motion[:, i], made_motion[:, i]) for i, name in enumerate(AXES)}
    scored = [axis["balanced_accuracy"] for axis in axes.values() if axis]
    return {
        "axes": axes,
        "balanced_accuracy": sum(scored) / len(scored) if scored else None,
        "cross_talk": cross_talk(true_motion, made_motion),
    }


def motion(tracks: Sequence[Tensor], cfg: Actions, step: Tensor) -> Tensor:
    """Signed motion [N, 6] of every frame of tracks [T, 4, 4] but their first, which nothing leads to."""
    return torch.cat([actions.signed(actions.annotate(track.double(), cfg, step=step))[1:] for track in tracks])


def follows(true: Tensor, made: Tensor) -> dict[str, float] | None:
    """One axis [N] of the motion: how often its sign is right, and how much of its size comes (least squares)."""
    if not true.any():
        return None
    signs = true.sign().unique()
    recalls = [(made.sign() == sign)[true.sign() == sign].double().mean().item() for sign in signs]
    return {
        "balanced_accuracy": sum(recalls) / len(recalls),
        "chance": 1 / len(recalls),
        "slope": float((true * made).sum() / true.square().sum()),
        "active": int(true.count_nonzero()),
    }


def cross_talk(true: Tensor, made: Tensor) -> list[list[float | None]]:
    """[6, 6]: where axis i is asked for and axis j is not, the share of frames in which j moves nevertheless; on the
    diagonal the share in which i moves the right way. None where no frame can tell."""
    rows = []
    for i in range(len(AXES)):
        hits = [(made[:, j] != 0) if i != j else made[:, i].sign() == true[:, i].sign() for j in range(len(AXES))]
        asked = [(true[:, i] != 0) & ((true[:, j] == 0) | (i == j)) for j in range(len(AXES))]
        rows.append([hit[of].double().mean().item() if of.any() else None for hit, of in zip(hits, asked, strict=True)])
    return rows
