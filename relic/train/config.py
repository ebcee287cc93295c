"""Dials of the training steps."""

from dataclasses import dataclass, field
from pathlib import Path

from relic.data.config import Loader
from relic.generate.config import Rollout
from relic.geometry.config import Actions
from relic.model.config import Codec, PoseNet, Transformer
from relic.parallel.config import Parallel


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW, or Muon and AdamW, with a linear warm-up and a cosine decay to `final_share` of the rate."""

    muon: bool = False  # Muon on the hidden layers' matrices: fewer steps to the same loss on small models
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup: int = 20  # steps
    final_share: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When and where a training's state is saved (train/checkpoint.py). Nothing here changes what is learnt, so no
    artifact's key counts it."""

    every_s: float = 15.0  # seconds from one to the next
    keep_last: int = 2  # of the whole ones, these are kept
    keep_every: int = 0  # and those of every so many steps; 0: none besides
    to: str = ""  # a folder that all processes see, or s3://BUCKET/PREFIX; empty: hidden, in the step's working folder

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_every < 0:
            raise ValueError(
                f"keep_last is {self.keep_last} and keep_every {self.keep_every}; allowed are at least 1 and at least 0"
            )

    def place(self, out: Path, training: str = "") -> str:
        """Where a step keeps those of one of its trainings; `out` is its working folder, STEP/KEY.partial, by which
        the trainings that share `to` are told apart."""
        own = (out.parent.name, out.name.removesuffix(".partial")) if self.to else (".checkpoints",)
        return "/".join(part for part in (self.to.rstrip("/") or out.as_posix(), *own, training) if part)


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    pretrained: str = ""  # a folder with Wan's VAE (docs/weights.md), taken as it is and measured; empty: train `model`
    model: Codec = field(default_factory=Codec)
    start: str = ""  # a folder of start weights in relic/weights ("tiny/codec"); empty: from nothing
    steps: int = 200
    batch: int = 8  # pieces of clips a step
    piece_frames: int = 9  # frames a piece
    piece_size: int = 64  # pixels a side of the piece's crop
    noise: float = 0.1  # standard deviation added to the latents, whose scale is 1: a diffusion model's are never exact
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=5e-4))
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.piece_frames % 4 != 1 or self.piece_size % 8:
            raise ValueError(
                f"a piece is {self.piece_frames} frames of {self.piece_size} pixels; "
                "allowed are 4n + 1 and multiples of 8"
            )


@dataclass(frozen=True, kw_only=True)
class PoseNetTraining:
    model: PoseNet = field(default_factory=PoseNet)
    steps: int = 800
    batch: int = 6  # pieces of clips a step
    piece_frames: int = 9  # frames a piece
    skipping: float = 0.2  # share of the pieces that take every second frame: faster motions
    blur: float = 1.0  # most of a picture that gives way to the mean of 3x3 pixels, in half of the pieces
    smear: float = 0.7  # most of it that gives way to the mean of four frames (a latent's), in half of the pieces
    noise: float = 0.03  # largest standard deviation of the noise on the pixels, which are in 0..1
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3e-3, final_share=0.02))
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.piece_frames < 2:
            raise ValueError(f"a piece is {self.piece_frames} frames; a motion needs at least 2")
        for name in ("skipping", "blur", "smear"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One length of the curriculum."""

    latents: int  # latent frames a sample
    steps: int
    batch: int

    @property
    def named(self) -> tuple[str, int]:
        """What it is called where a training says how far it is, and its steps."""
        return f"{self.latents} latents", self.steps


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters of the blocks' linear layers in place of training all weights (train/lora.py)."""

    rank: int = 0  # 0: all weights are trained
    alpha: int = 16  # what an adapter adds is multiplied by alpha / rank
    dropout: float = 0.0  # of an adapter's input
    targets: tuple[str, ...] = ("attention", "cross_attention", "ffn")  # the parts of a block that are adapted

    def __post_init__(self) -> None:
        parts = ("attention", "cross_attention", "ffn")
        if not self.targets or not set(self.targets) <= set(parts):
            raise ValueError(f"targets are {self.targets}; allowed are one or more of {', '.join(parts)}")
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank is {self.rank}, alpha {self.alpha}, dropout {self.dropout}; "
                "allowed are a rank from 0 on, a positive alpha and a dropout in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class MergeAdapter:
    """Start weights and an adapter trained on them as one plain model (train/lora.py)."""

    source: tuple[str, ...]  # the start weights' folder
    adapter: str  # a folder with adapter.safetensors, such as the artifact of a teacher trained with LoRA
    out: str

    def __post_init__(self) -> None:
        if len(self.source) != 1:
            raise ValueError(f"{len(self.source)} folders are given; allowed is one")


@dataclass(frozen=True, kw_only=True)
class ExportCheckpoint:
    """One part of a training's newest checkpoint as a plain model (train/saved.py)."""

    source: tuple[str, ...]  # the folder of a training's checkpoints, or s3://BUCKET/PREFIX
    part: str  # such as "student/weights" or "student/ema"
    out: str

    def __post_init__(self) -> None:
        if len(self.source) != 1:
            raise ValueError(f"{len(self.source)} folders are given; allowed is one")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    model: Transformer = field(default_factory=Transformer)
    start: str = ""  # a folder of weights, or of those in relic/weights ("tiny/base"); empty: from nothing
    lora: Lora = field(default_factory=Lora)
    stages: tuple[Stage, ...] = (Stage(latents=8, steps=100, batch=16), Stage(latents=16, steps=100, batch=8))
    shift: float = 3.0  # of the timestep distribution: larger means noisier
    text_dropout: float = 0.1
    ema: float = 0.99
    optimizer: Optimizer = field(default_factory=Optimizer)
    loader: Loader = field(default_factory=Loader)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lora.rank and not self.start:
            raise ValueError(f"lora.rank is {self.lora.rank} and start is empty; adapters need start weights")
        if self.lora.rank > self.model.width:
            raise ValueError(f"lora.rank is {self.lora.rank}; allowed is at most the model's width, {self.model.width}")


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """The bidirectional teacher's ODE, solved for the initialisation "ode"."""

    clips: int = 64  # over all parts; 0 where the student is initialised without
    batch: int = 8  # clips that are solved together, and lie in one file
    steps: int = 24  # Euler steps; with shift 5 a multiple of 4 passes through 937.5, 833.3 and 625
    shift: float = 5.0
    timesteps: tuple[float, ...] = Rollout().timesteps  # where states are kept, beside the end
    latents: int = 16
    verified: int = 2  # clips a part that are integrated again
    tolerance: float = 0.05  # of a latent's error then, in root mean squares; in bfloat16 the tiny base has 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.clips, self.verified) < 0 or self.batch < 1 or self.tolerance <= 0:
            raise ValueError(
                f"clips is {self.clips}, verified {self.verified}, batch {self.batch} and tolerance {self.tolerance}; "
                "allowed are at least 0, 0 and 1, and a positive number"
            )
        check_passed(self.steps, self.shift, self.timesteps)


def check_passed(steps: int, shift: float, timesteps: tuple[float, ...]) -> None:
    """Euler steps must pass through the student's timesteps, or there are no states to learn from."""
    passed = {round(1000 * shift * u / (steps + (shift - 1) * u), 1) for u in range(steps + 1)}
    if not passed.issuperset(round(t, 1) for t in timesteps):
        raise ValueError(f"{steps} steps with shift {shift} do not pass through the timesteps {timesteps}")


INITIALISATIONS = ("ode", "causal_ode", "consistency")
FORCINGS = ("hybrid", "teacher", "diffusion")


@dataclass(frozen=True, kw_only=True)
class StudentInit:
    """The causal few-step student, before it is distilled on its own videos.

    "ode" is section 4.4.1 of RELIC: hybrid forcing on the teacher's trajectories. "causal_ode" and "consistency" first
    make a causal model of many steps, then distil that one under teacher forcing (train/causal.py)."""

    initialisation: str = "ode"  # "ode" | "causal_ode" | "consistency"
    latents: int = 16
    forcing: str = "hybrid"  # of "ode": "hybrid" | "teacher" | "diffusion"
    noisy_chunks: int = 2  # K: the last chunks, uncompressed and noisy; the earlier ones are clean and compressed
    rollout: Rollout = field(default_factory=Rollout)
    causal_steps: int = 200  # training steps of the causal model of many steps
    causal_shift: float = 3.0  # of the timestep distribution in them
    ode_steps: int = 24  # Euler steps of that model
    ode_shift: float = 5.0
    steps: int = 200
    batch: int = 8
    text_dropout: float = 0.1
    ema: float = 0.98
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-4))
    loader: Loader = field(default_factory=Loader)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    seed: int = 0

    def __post_init__(self) -> None:
        check_passed(self.ode_steps, self.ode_shift, self.rollout.timesteps)
        if self.latents % self.rollout.chunk or self.latents < 2:
            raise ValueError(f"{self.latents} latents cannot be cut into chunks of {self.rollout.chunk}")
        if self.latents > self.rollout.memory.capacity:
            raise ValueError(
                f"{self.latents} latents are more than the memory's capacity, {self.rollout.memory.capacity}"
            )
        for name, known in (("forcing", FORCINGS), ("initialisation", INITIALISATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(known)}")

    @property
    def num_noisy(self) -> int:
        """Noisy chunks of a video, of those that it has."""
        if self.initialisation != "ode":
            return 1
        chunks = self.latents // self.rollout.chunk
        return {"hybrid": self.noisy_chunks, "teacher": 1, "diffusion": chunks}[self.forcing]


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Replayed back-propagation of DMD's loss: section 4.4.2 of RELIC. The defaults are Self-Forcing's, but for the
    guidance, which is stated in another form here."""

    stages: tuple[Stage, ...] = (Stage(latents=8, steps=20, batch=8), Stage(latents=16, steps=20, batch=4))
    rollout: Rollout = field(default_factory=Rollout)
    actions: Actions = field(default_factory=Actions)  # what an action of 1 is
    critic_steps: int = 5  # of the critic, each on videos of its own, before one of the student
    guidance: float = 3.0  # of the teacher: uncond + guidance (cond - uncond)
    least_timestep: float = 20.0  # of 1000; the loss is taken at timesteps between these two
    largest_timestep: float = 980.0
    shift: float = 5.0  # of the timesteps' distribution, for the loss and for the critic
    ema: float = 0.99
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(learning_rate=2e-6, betas=(0.0, 0.999), warmup=0, final_share=1.0)
    )
    critic_optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(learning_rate=4e-7, betas=(0.0, 0.999), warmup=0, final_share=1.0)
    )
    loader: Loader = field(default_factory=Loader)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    seed: int = 0

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage.latents % self.rollout.chunk:
                raise ValueError(f"{stage.latents} latents cannot be cut into chunks of {self.rollout.chunk}")
        if not 0 < self.least_timestep < self.largest_timestep <= 1000:
            raise ValueError(
                f"timesteps from {self.least_timestep} to {self.largest_timestep} are asked for; "
                "they must rise and lie in 0..1000"
            )
        if self.critic_steps < 0:
            raise ValueError(f"critic_steps is {self.critic_steps}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The GPUs that a plan is made for, and the dials of a training on them (parallel/config.py)."""

    gpus: int = 1
    gpu_memory: float = 80e9  # bytes of each
    zero: int = 3  # what several GPUs share: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too
    offload: str = "none"  # to the host's memory: "none" | "optimizer" | "all"
    sequence_parallel: int = 1  # GPUs that share the tokens and heads of their samples
    checkpointing: bool = False  # of activations: a block keeps its input and is computed again in the backward
    samples: int = 0  # at once in a group of GPUs, the rest of the batch by accumulation; 0: its whole part
    bucket: int = Parallel().bucket
    bfloat16: bool = True  # whether autocast multiplies in it
    share: float = 0.9  # of the memory that may be planned: CUDA, communication and fragments take the rest

    def __post_init__(self) -> None:
        if min(self.gpus, self.sequence_parallel) < 1 or self.gpus % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel is {self.sequence_parallel} and gpus {self.gpus}; "
                "both must be at least 1, and the first divide the second"
            )
        if self.gpu_memory <= 0 or self.samples < 0:
            raise ValueError(
                f"gpu_memory is {self.gpu_memory:g} bytes and samples {self.samples}; "
                "allowed are more than 0, and at least 0"
            )
        Parallel(zero=self.zero, offload=self.offload)  # which refuses what does not go together

    @property
    def cut(self) -> int:
        """ZeRO's stage; one GPU has nothing to share."""
        return self.zero if self.gpus > 1 else 0

    @property
    def low(self) -> int:
        """Bytes of a number where autocast computes."""
        return 2 if self.bfloat16 else 4

    @property
    def usable(self) -> float:
        """Bytes that a plan may use."""
        return self.share * self.gpu_memory
