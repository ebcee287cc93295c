"""Held-out walks over the panorama, each turning at its own speed from the same first frame. For tests of evaluate."""

from pathlib import Path

import numpy as np
from synthetic import recording, track

from relic.data import clip
from relic.evaluate.walks import Walks, read
from relic.geometry.config import Actions

TURNS = (2.0, -2.0, 2.5, -1.5, 1.0)  # degrees to the right a frame
NUM_FRAMES = 29
REASON = {
    "filter": "exposure",
    "metric": "max_luminance",
    "value": 201.5,
    "threshold": 190.0,
    "frames": [0, NUM_FRAMES],
}


def write_clips(folder: Path, *, dropped: int = 0, **regions: int) -> Path:
    """An artifact of clips with so many kept ones a region, and `dropped` ones more of the region train."""
    names = [(f"{region}-{i}", region) for region, count in regions.items() for i in range(count)]
    names += [(f"dropped-{i}", "train") for i in range(dropped)]
    entries = []
    for number, (name, region) in enumerate(names):
        turns = np.full(NUM_FRAMES - 1, TURNS[number % len(TURNS)])
        r = recording(number, poses=track(turns, origin=(number, 0, 0)), region=region)
        one = clip.Clip(
            id=name, frames=r.frames, poses=r.poses, intrinsics=r.intrinsics, fps=r.fps, world=r.world, place=r.place,
            region=region, seed=0, tags=r.tags, caption=f"a <bright> room called {name}",
        )  # fmt: skip
        reasons = [REASON] if name.startswith("dropped") else []
        entries.append(clip.write_clip(folder, one, actions=Actions(), reasons=reasons, measures={}))
    clip.write_index(folder, entries, {"exposure": {"max_luminance": 190.0}})
    return folder


def walks(folder: Path, count: int = 5) -> Walks:
    """So many walks of known maps, of 21 frames (6 latents)."""
    found = read([write_clips(folder, known=count)], "known", count, 21, Actions())
    assert found is not None
    return found
