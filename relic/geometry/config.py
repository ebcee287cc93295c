"""The actions, and dials of their annotation (Algorithm 1 of RELIC)."""

from dataclasses import dataclass

ACTIONS = (
    "dolly_in", "dolly_out", "truck_left", "truck_right", "pedestal_up", "pedestal_down",
    "tilt_up", "tilt_down", "pan_left", "pan_right", "roll_cw", "roll_ccw", "static",
)  # fmt: skip  # each beside its opposite


@dataclass(frozen=True, kw_only=True)
class Actions:
    """How a track becomes actions. With both dead-zones at 0, `integrate(annotate(track))` gives the track back."""

    degrees_per_unit: float = 1.0  # a rotation magnitude of 1 is this many degrees a frame
    translation_dead_zone: float = 0.05  # in mean steps of the clip
    rotation_dead_zone: float = 0.05  # in rotation units

    def __post_init__(self) -> None:
        if self.degrees_per_unit <= 0:
            raise ValueError(f"degrees_per_unit is {self.degrees_per_unit}; it must be positive")
        if min(self.translation_dead_zone, self.rotation_dead_zone) < 0:
            raise ValueError(
                f"dead-zones are {self.translation_dead_zone} and {self.rotation_dead_zone}; they must be >= 0"
            )
