"""Dials of the deployment."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a figure of the evaluation's report.json must reach."""

    metric: str  # its place there, with dots: "models.distilled.action_win_rate"
    at_least: float = -math.inf  # its lowest value that passes
    at_most: float = math.inf  # its highest value that passes

    def __post_init__(self) -> None:
        if not self.at_least <= self.at_most or (math.isinf(self.at_least) and math.isinf(self.at_most)):
            raise ValueError(
                f"the threshold of {self.metric} is at_least {self.at_least:g} and at_most {self.at_most:g}; "
                "one of them must be given, and at_least be the smaller"
            )


@dataclass(frozen=True, kw_only=True)
class Deploy:
    """The gate, the place in MLflow's model registry, and the session that is played before anybody else's."""

    gate: tuple[Threshold, ...]  # all must be reached
    model: str = "relic"  # the registered model that an export becomes a version of
    alias: str = "production"  # what is moved to that version
    pictures: int = 48  # of the session
    picture_s: float = 30.0  # the longest wait for a picture, and for a key press to show in one
    start_s: float = 300.0  # for the server to load and to get warm
    text_encoder: str = ""  # umT5's folder, for a model that takes its embeddings

    def __post_init__(self) -> None:
        if not self.gate:
            raise ValueError("the gate has no threshold; it must have at least one, or every model passes")
        if self.pictures < 16:
            raise ValueError(f"pictures is {self.pictures}; it must be at least 16, or nothing can be seen to move")
