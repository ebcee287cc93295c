"""What a recipe is: the dials of every step. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from relic.data.config import Curate, Shard
from relic.evaluate.config import SERVED, Evaluate
from relic.launch.config import Deploy, Threshold
from relic.parallel.config import Parallel
from relic.serve.config import Export
from relic.train.config import CodecTraining, Distill, PoseNetTraining, StudentInit, Teacher, Trajectories


def gate(*, gain_db: float, win_rate: float) -> tuple[Threshold, ...]:
    """What the figures of known maps must reach."""
    bars = {"psnr_gain_over_still_db": gain_db, "action_win_rate": win_rate}
    return tuple(Threshold(metric=f"models.{SERVED}.{name}", at_least=bar) for name, bar in bars.items())


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    curate: Curate = field(default_factory=Curate)
    codec: CodecTraining = field(default_factory=CodecTraining)
    pose_net: PoseNetTraining = field(default_factory=PoseNetTraining)
    shard: Shard = field(default_factory=Shard)
    teacher: Teacher = field(default_factory=Teacher)
    trajectories: Trajectories = field(default_factory=Trajectories)
    student_init: StudentInit = field(default_factory=StudentInit)
    distill: Distill = field(default_factory=Distill)
    evaluate: Evaluate = field(default_factory=Evaluate)
    parallel: Parallel = field(default_factory=Parallel)  # of the trainings that are launched in several processes
    deploy: Deploy = field(default_factory=lambda: Deploy(gate=gate(gain_db=0.01, win_rate=0.8)))
    expected_s: Mapping[str, float] = field(default_factory=dict)  # step of the graph -> seconds, for the estimate

    @property
    def export(self) -> Export:
        return Export(name=self.name)
