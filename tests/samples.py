"""Samples drawn without a codec: latent k of sample n is n + k / 100 everywhere. For tests of shards and the loader."""

from pathlib import Path

import torch

from relic.data import shards

SHAPE = [2, 3, 4]


def sample(number: int, num_latents: int = 4, share: list[float] | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    num_frames = 4 * (num_latents - 1) + 1
    latents = (number + torch.arange(num_latents) / 100)[:, None, None, None].expand(-1, *SHAPE).half().contiguous()
    actions = torch.zeros(num_frames, 13)
    actions[:, 12] = torch.arange(num_frames)
    poses = torch.eye(4).repeat(num_frames, 1, 1)
    facts = {
        "id": f"walk-{number}", "clip": f"walk-{number}", "region": "train", "caption": f"room {number}",
        "palindrome": False, "num_latents": num_latents, "action_share": share or [0.0] * 12 + [1.0],
    }  # fmt: skip
    return facts, {"latents": latents, "actions": actions, "poses": poses}


def write(
    out: Path, batches: list[list[int]], shard_bytes: int = 10**6, latent_shape: list[int] = SHAPE
) -> shards.Writer:
    """An artifact of samples in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    writer = shards.Writer(out, shard_bytes)
    for batch in batches:
        writer.append([sample(number) for number in batch])
    writer.finish({"latent_shape": latent_shape})
    return writer
