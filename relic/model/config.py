"""Sizes of the networks."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Codec:
    """The small causal video codec: 8x in space, 4x in time."""

    latent_channels: int = 16
    decoder_widths: tuple[int, int, int, int] = (64, 48, 32, 32)  # TAEHV's published decoder is wider, see below


TAEHV = Codec(decoder_widths=(256, 128, 64, 64))  # github.com/madebyollin/taehv, its file taew2_1


@dataclass(frozen=True, kw_only=True)
class PoseNet:
    """The pose estimator. Frames of another size are scaled to its own."""

    height: int = 64  # pixels
    width: int = 96
    reach: int = 2  # steps before and after that the motion of a step is read from too
    widths: tuple[int, int, int] = (32, 48, 64)
    hidden: int = 64

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16 or self.height % 16 or self.width % 16:
            raise ValueError(f"pictures are {self.width}x{self.height} pixels; both sides must be multiples of 16")
        if self.reach < 0:
            raise ValueError(f"reach is {self.reach}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Wan-2.1's diffusion transformer with RELIC's control paths.

    Wan 1.3B: width 1536, ffn 8960, 30 layers, 12 heads.
    """

    width: int = 192
    ffn: int = 768
    layers: int = 8
    heads: int = 3
    latent_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)  # latent frames, rows, columns a token
    text_width: int = 64  # width of the text embeddings that come in; umT5's is 4096
    text_tokens: int = 16
    text_vocabulary: int = 512  # 0: embeddings come from outside (umT5); else token ids with a learned table
    frequency_width: int = 256  # of the sinusoidal timestep embedding
    control_width: int = 128  # hidden width of the action and pose encoders
    position_scale: float = 0.1  # positions in the pose encoder's input are multiplied by this: steps become order 1
    trained_frames: int = 8  # latents that plain RoPE was trained on (Wan: 21)
    frames: int = 8  # latents that this model is for; more than `trained_frames` extend RoPE by YaRN
    attention: str = "sdpa"  # or "flash": flash-attn, which must be installed and needs a GPU and bfloat16

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of the {self.heads} heads")
        if self.patch[0] != 1:
            raise ValueError(f"patch is {self.patch}; a token covers one latent frame: (1, rows, columns)")
        if self.attention not in ("sdpa", "flash"):
            raise ValueError(f"attention is {self.attention!r}; allowed are 'sdpa' and 'flash'")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class ImportWeights:
    """Wan-2.1's weights into a folder of relic's (model/wan.py)."""

    source: tuple[str, ...]  # a folder in diffusers' layout or of Wan's own release, or all of its files
    out: str  # the folder that gets model.safetensors and config.json
    heads: int = 0  # needed where no config.json says it
    control_width: int = 256  # of the new control paths; the recipes wan_1b and relic_14b have 256
    pickle: bool = False  # read .pth files too, with weights_only


@dataclass(frozen=True, kw_only=True)
class ExportWeights:
    """A folder of relic's as `WanTransformer3DModel.from_pretrained` loads it (model/wan.py)."""

    source: tuple[str, ...]  # the folder
    out: str
    format: str = "diffusers"
    shard_gb: float = 5.0  # largest file, in 10^9 bytes

    def __post_init__(self) -> None:
        if self.format != "diffusers":
            raise ValueError(f"format is {self.format!r}; allowed is diffusers")
        if len(self.source) != 1:
            raise ValueError(f"{len(self.source)} folders are given; allowed is one")
        if self.shard_gb <= 0:
            raise ValueError(f"shard_gb is {self.shard_gb}; it must be positive")
