"""Does a place look the same when the camera comes back to it? Within one video, so that no truth is needed.

Return frames are found by pose. Best on the track estimated from the video, for a fixed last frame takes a camera that
turns less than asked for one that forgets (Echo-Memory); where the estimator drifts further than a return may be off,
on the track asked for. A frozen video is like itself everywhere; each return counts by a gate,
min(1, (1 - lowest similarity on the way) / 0.15) (WBench), that is 0 unless the picture was another in between.

The similarity is the correlation of the frames' mean grey over 8 x 12 cells: about the size of what a camera sees anew
when it turns away, blind to noise, which cells average out, and to brightness and contrast, so that a frozen video
which flickers or fades earns nothing. A frame without structure cannot tell and counts as the same.
"""

import numpy as np
from torch import Tensor

from relic.evaluate.config import Revisit
from relic.evaluate.predict import psnr
from relic.geometry import actions

CELLS = (8, 12)  # rows, columns
FLAT = 4.0  # standard deviation of the cells, of 255, under which a frame has no structure


def returns(poses: Tensor, cfg: Revisit, *, step: float | None = None) -> np.ndarray:
    """Pairs int64 [N, 2] of frames of a track [T, 4, 4]: a frame at which the camera is back, and the nearest earlier
    frame, at least `min_away` before it, which it really left in between.

    `step` is the mean step in the poses' unit. Give that of the walk that was asked for with an estimated track: in the
    track's own, the noise of a camera that only turns would be a walk."""
    apart = distances(poses, cfg, step)
    frames = np.arange(len(poses))
    away = frames[:, None] - frames  # rows are the later frame
    left = np.maximum.accumulate(np.where(away >= 0, apart, 0.0), axis=0) >= cfg.left
    candidates = np.where((away >= cfg.min_away) & left, apart, np.inf)
    earlier = candidates.argmin(1)
    back = candidates[frames, earlier] <= cfg.near
    return np.stack([frames[back], earlier[back]], 1)


def distances(poses: Tensor, cfg: Revisit, step: float | None) -> np.ndarray:
    """How far apart [T, T] the poses [T, 4, 4] are, in mean steps."""
    track = poses.double()
    length = float(actions.mean_step(actions.steps(track)[0])) if step is None else step
    position, rotation = track[:, :3, 3].numpy(), track[:, :3, :3].flatten(1).numpy()
    moved = np.linalg.norm(position[:, None] - position, axis=-1) / length
    turned = np.degrees(np.arccos(((rotation @ rotation.T - 1) / 2).clip(-1, 1)))
    return moved + turned / cfg.degrees_per_step


def similarities(video: np.ndarray) -> np.ndarray:
    """Correlation [T, T] of the frames of a video uint8 [T, H, W, 3] in -1..1; 1 where one has no structure."""
    cells = centred(video)
    unit, flat = of_length_1(cells), cells.std(1) < FLAT
    return np.where(flat[:, None] | flat, 1.0, unit @ unit.T)


def centred(video: np.ndarray) -> np.ndarray:
    """Mean grey over the cells of frames uint8 [T, H, W, 3], less each frame's mean [T, cells]."""
    cells = np.stack([cell_means(frame) for frame in video])
    return cells - cells.mean(1, keepdims=True)


def of_length_1(cells: np.ndarray) -> np.ndarray:
    """Rows [T, cells] over their lengths: their products are correlations."""
    return cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-9)


def cell_means(frame: np.ndarray) -> np.ndarray:
    """Mean grey [rows x columns] over the cells of a frame uint8 [H, W, 3], edges that do not divide left out."""
    (rows, columns), (height, width, _) = CELLS, frame.shape
    if height < rows or width < columns:
        raise ValueError(f"frames are {height}x{width}; they must be at least {rows}x{columns} pixels")
    down, across = height // rows, width // columns
    return frame[: rows * down, : columns * across].reshape(rows, down, columns, across, 3).mean((1, 3, 4)).ravel()


def gate(video: np.ndarray, pairs: np.ndarray, cfg: Revisit) -> np.ndarray:
    """How much the return of each of the pairs [N, 2] counts [N]: 0 where no frame between differs from the earlier
    one, 1 where one is less like it by `similarity_drop` or more."""
    alike = similarities(video)
    lowest = np.array([alike[earlier : frame + 1, earlier].min() for frame, earlier in pairs])
    return ((1 - lowest) / cfg.similarity_drop).clip(0, 1)


def psnr_at_returns(video: np.ndarray, poses: Tensor, cfg: Revisit, *, step: float | None = None) -> dict | None:
    """How well a video uint8 [T, H, W, 3] with the camera's poses [T, 4, 4] agrees with itself at its returns.

    None where the camera never comes back; of a walk that was to come back, such a video has earned 0."""
    if len(video) != len(poses):
        raise ValueError(f"{len(video)} frames have {len(poses)} poses; each frame needs one")
    pairs = returns(poses, cfg, step=step)
    if not len(pairs):
        return None
    agreement = psnr(video[pairs[:, 0]], video[pairs[:, 1]])
    counts = gate(video, pairs, cfg)
    away = pairs[:, 0] - pairs[:, 1]
    bins = away // cfg.curve_frames
    return {
        **means(agreement, counts),
        "curve": [
            {"away_frames": float(away[bins == b].mean()), **means(agreement[bins == b], counts[bins == b])}
            for b in np.unique(bins)
        ],
    }


def means(agreement: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Means over pairs of their PSNR [N], their gate [N] and the product."""
    return {
        "psnr_db": float(agreement.mean()),
        "gate": float(counts.mean()),
        "gated_psnr_db": float((agreement * counts).mean()),
        "pairs": len(agreement),
    }
