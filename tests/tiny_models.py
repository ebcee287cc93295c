"""Small networks with weights that matter, for tests."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from relic import place
from relic.data import embeddings, shards
from relic.memory.cache import Memory
from relic.model import config, rope
from relic.model.conditions import Conditions
from relic.model.transformer import Transformer
from relic.parallel.mesh import Mesh
from relic.tracking import Run
from relic.train import saved
from relic.train.draws import Draws

CFG = config.Transformer(
    width=48, ffn=64, layers=2, heads=2, latent_channels=4, text_width=8, text_tokens=4, control_width=16
)


class KilledAt(Run):
    """A run that dies at a training step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def log(self, metrics, step):
        if step == self.step:
            raise KeyboardInterrupt


def whole_and_resumed(main: Callable, cfg: Any, folder: Path, *, killed_at: int, **inputs: list[Path]) -> list[dict]:
    """The weights of a training, and of the same one killed at a step and called again."""
    for name, runs in (("whole", [Run.silent()]), ("resumed", [KilledAt(killed_at), Run.silent()])):
        (folder / name).mkdir()
        for run in runs:
            with pytest.raises(KeyboardInterrupt) if isinstance(run, KilledAt) else nullcontext():
                main(cfg, **inputs, out=folder / name, run=run)
    return [load_file(folder / name / "model.safetensors") for name in ("whole", "resumed")]


def transformer(cfg: config.Transformer = CFG, seed: int = 0) -> Transformer:
    """A transformer in which no layer is zero."""
    torch.manual_seed(seed)
    model = Transformer(cfg).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def conditions(num_latents: int, batch: int = 1, seed: int = 0) -> Conditions:
    """Conditions of 4 (F - 1) + 1 frames."""
    generator = torch.Generator().manual_seed(seed)
    num_frames = 4 * (num_latents - 1) + 1
    poses = torch.eye(4).expand(batch, num_frames, 4, 4).clone()
    poses[..., :3, 3] = torch.randn(batch, num_frames, 3, generator=generator)
    return Conditions(
        torch.rand(batch, num_frames, 13, generator=generator), poses,
        torch.randint(1, 512, (batch, 4), generator=generator),
    )  # fmt: skip


def first_moment(checkpoints: str, model: str) -> torch.Tensor:
    """AdamW's, of all of a model's parameters in the newest checkpoint: after one step its gradient times a number."""
    left, _ = saved.newest(place.opened(checkpoints), Mesh())
    assert left is not None
    names = sorted(name for name in left.tensors if name.startswith(f"{model}/exp_avg/"))
    return torch.cat([left.whole(name).flatten() for name in names])


def latents(num_latents: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, num_latents, 4, 8, 12, generator=torch.Generator().manual_seed(seed))


def draws(batch: int, seed: int = 0) -> Draws:
    """What is random for a batch."""
    return Draws((seed, 0, 0), range(batch))


def write_samples(folder: Path, count: int = 4, num_latents: int = 4) -> list[Path]:
    """An artifact of samples that these models can be trained on, on hashed words or on embeddings of width 8."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = shards.Writer(folder, 10**6)
    for number in range(count):
        given = conditions(num_latents, seed=number)
        facts = {
            "id": f"walk-{number}", "clip": f"walk-{number}", "region": "train", "caption": f"room {number}",
            "palindrome": False, "text": embeddings.key(f"room {number}"), "num_latents": num_latents,
            "action_share": [1 / 13] * 13,
        }  # fmt: skip
        found = {
            "latents": latents(num_latents, seed=number)[0].half(),
            "actions": given.actions[0],
            "poses": given.poses[0],
        }
        writer.append([(facts, found)])
    writer.finish({"latent_shape": [4, 8, 12]})
    texts, generator = ["", *(f"room {number}" for number in range(count))], torch.Generator().manual_seed(0)
    embeddings.write(folder, {embeddings.key(text): torch.randn(3, 8, generator=generator) for text in texts})
    return [folder]


def remembered(memory: Memory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a memory shows, oldest first: keys (before RoPE), values [layers, B, N, K, head_width], positions [N, 3]."""
    parts = memory.parts()
    positions = torch.cat([part.positions for part in parts])
    order = positions[:, 0].argsort(stable=True)
    keys, values = torch.cat([part.read(slice(None)) for part in parts], 3)[:, :, :, order]
    return keys, values, positions[order]


def turned_by(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rotates the channel pairs of x [B, N, K, head_width] by angles [N, head_width / 2]."""
    return rope.turn(x, rope.cos_sin(angle))


def grid(frames: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Positions [F rows columns, 3] of the tokens of latent frames at times `frames` [F]."""
    t, y, x = torch.meshgrid(
        frames.double(),
        torch.arange(rows, device=frames.device).double(),
        torch.arange(columns, device=frames.device).double(),
        indexing="ij",
    )
    return torch.stack([t, y, x], -1).flatten(0, 2)
