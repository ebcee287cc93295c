"""Dials of the worlds. Loads no torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Doom:
    """Walks in Freedoom's maps. One map unit is 1/32 m; a map is named wad/map."""

    height: int = 64
    width: int = 96
    fps: float = 16.0  # played; two of Doom's 35 tics are a frame, so the world runs 9 % slower than recorded
    train_maps: tuple[str, ...] = (
        "freedoom2/MAP01", "freedoom2/MAP04", "freedoom2/MAP09", "freedoom2/MAP13",
        "freedoom1/E1M2", "freedoom1/E1M5", "freedoom1/E2M3", "freedoom1/E4M1",
    )  # fmt: skip
    unseen_maps: tuple[str, ...] = ("freedoom2/MAP05", "freedoom1/E1M4")
    cell_units: int = 512  # side of the squares that belong as a whole to train or to known
    known_share: float = 0.25  # of the squares
    walk_units: float = 7.0  # speed of a walk, map units a frame, times 0.6 to 1.4
    turn_deg: float = 2.0  # speed of a turn, degrees a frame, times 0.6 to 1.4
    clearance_units: float = 28.0  # between the camera and a wall or a ledge; the body's radius is 16
    min_depth_units: float = 88.0  # a frame whose median depth is less shows only a wall
    max_sky_share: float = 0.6  # a frame with more sky shows nothing else
    max_bare_share: float = 0.15  # of the frames that show only a wall or only the sky
    max_blocked_share: float = 0.1  # of the frames that wanted to move and could not
    min_luminance: float = 28.0  # mean of the clip, of 255

    def __post_init__(self) -> None:
        if self.width > 320:
            raise ValueError(f"width is {self.width}; the game renders 320 columns, so it must be <= 320")
        if self.height * 4 > self.width * 3:
            raise ValueError(
                f"height x width is {self.height}x{self.width}; the game renders 4:3, so height <= 3/4 width"
            )
        for name in ("train_maps", "unseen_maps"):
            for place in getattr(self, name):
                if place.split("/")[0] not in ("freedoom1", "freedoom2"):
                    raise ValueError(f"{name} has {place!r}; a map is freedoom1/ExMy or freedoom2/MAPxx")
        if shared := set(self.train_maps) & set(self.unseen_maps):
            raise ValueError(
                f"{sorted(shared)} are both train_maps and unseen_maps; held-out maps must not be trained on"
            )
        if not 0 <= self.known_share <= 1:
            raise ValueError(f"known_share is {self.known_share}; it must be in 0..1")


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """Walks in procedural houses, with all six degrees of freedom. Houses 0 .. num_worlds - 1 are trained on."""

    height: int = 64
    width: int = 96
    fps: float = 16.0
    fov_deg: float = 80.0  # horizontal
    num_worlds: int = 64  # houses
    rooms_a_side: int = 4  # of a house's square grid; its last column is the region "known"
    min_room_m: float = 4.0
    max_room_m: float = 7.5
    walk_m_s: float = 1.5  # mean speed along an active axis, half of it up and down
    turn_deg_s: float = 28.0  # mean speed about an active axis
    clearance_m: float = 0.3  # between the camera and a wall
    max_pitch_deg: float = 40.0
    max_roll_deg: float = 30.0
    max_spoilt_share: float = 0.15  # of the frames that a wall or a limit holds, or that look at a wall close up

    def __post_init__(self) -> None:
        if not 0 < self.fov_deg < 180:
            raise ValueError(f"fov_deg is {self.fov_deg}; it must be in 0..180")
        if self.rooms_a_side < 2:
            raise ValueError(
                f"rooms_a_side is {self.rooms_a_side}; a house needs 2: one column to train on, one to test"
            )
        if not 3.5 <= self.min_room_m <= self.max_room_m:
            raise ValueError(f"rooms are {self.min_room_m} to {self.max_room_m} m; it must be 3.5 <= min <= max")
        if not 0 < self.clearance_m <= 0.5:
            raise ValueError(f"clearance_m is {self.clearance_m}; doors are 1.3 m wide, so it must be in 0..0.5")
        if max(self.max_pitch_deg, self.max_roll_deg) >= 90:
            raise ValueError(
                f"pitch and roll reach {self.max_pitch_deg} and {self.max_roll_deg}; both must be under 90"
            )

    @property
    def focal_px(self) -> float:
        return self.width / 2 / math.tan(math.radians(self.fov_deg) / 2)
