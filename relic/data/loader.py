"""Samples for a training step: the latents of a length, with the actions, poses and caption that belong to them.

A shorter piece of a sample is always its beginning: the codec is causal, so a latent in the middle was made knowing
what came before, and only latent 0 stands for one frame. Actions keep the scale of the whole clip (section 3.3 of
RELIC): one unit is its mean step, whatever of it is taken. Nothing is fetched ahead: a batch of 16 tiny samples takes
2 ms of a training step of 400.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relic.data import embeddings, sampler, shards
from relic.model import config, text
from relic.model.conditions import Conditions


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # [B, F, C, h, w] float32, normalised
    conditions: Conditions  # of the 4 (F - 1) + 1 frames


def load(
    samples: list[Path], model: config.Transformer, *, max_weight: float = 2.0, cache_bytes: int = 2**31
) -> "Dataset":
    """The samples of artifacts of shard or join, with text as `model` takes it. `max_weight` bounds the balancing of
    the actions (1: none); data of at most `cache_bytes` stays in memory once read."""
    indexed = [(folder, shards.read_index(folder)) for folder in samples]
    shapes = {tuple(index["latent_shape"]) for _, index in indexed}
    found = [(entry.get("artifact", str(folder)), entry) for folder, index in indexed for entry in index["samples"]]
    sources = {uri: shards.open_shards(uri) for uri in dict.fromkeys(uri for uri, _ in found)}
    entries = [(sources[uri], entry) for uri, entry in found]
    if not entries:
        raise ValueError(
            f"there are no samples in {', '.join(map(str, samples)) or 'no artifact'}; at least one is needed"
        )
    if len(shapes) > 1:
        raise ValueError(f"samples have latents of {sorted(shapes)}; one training takes one shape [C, h, w]")
    embedded = None if model.text_vocabulary else embeddings.read(samples)
    if embedded and (width := embedded[embeddings.key("")].shape[1]) != model.text_width:
        raise ValueError(f"captions have embeddings of width {width}; the model's text_width is {model.text_width}")
    return Dataset(
        entries, text_tokens=model.text_tokens, embedded=embedded, max_weight=max_weight, cache_bytes=cache_bytes
    )


class Dataset:
    """Samples by number, read when first asked for. entries: (shards, entry of their index); embedded: their captions'
    embeddings by key, None for hashed words."""

    def __init__(
        self,
        entries: list[tuple[shards.Source, dict]],
        *,
        text_tokens: int,
        embedded: Mapping[str, Tensor] | None,
        max_weight: float,
        cache_bytes: int,
    ) -> None:
        self.entries = entries
        self.text_tokens = text_tokens
        self.embedded = embedded
        self.weights = None
        if max_weight > 1:
            self.weights = sampler.balanced_weights([entry["action_share"] for _, entry in entries], bound=max_weight)
        self.is_cached = sum(entry["length"] for _, entry in entries) <= cache_bytes
        self.cache: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """latents float16 [F, C, h, w], actions [F_px, 13] and poses [F_px, 4, 4] float32 of a whole sample."""
        if index in self.cache:
            return self.cache[index]
        found = shards.read(*self.entries[index])
        if self.is_cached:
            self.cache[index] = found
        return found

    def indices(self, seed: int, step: int, global_batch: int, *, rank: int = 0, world: int = 1) -> list[int]:
        """The samples that a rank takes at a step, balanced over the actions."""
        return sampler.indices(
            seed, step, num_samples=len(self), global_batch=global_batch, weights=self.weights, rank=rank, world=world
        )

    def batch(self, indices: Sequence[int], *, num_latents: int, device: torch.device | str = "cpu") -> Batch:
        """The first `num_latents` latents of samples and the conditions of their frames."""
        for index in indices:
            entry = self.entries[index][1]
            if entry["num_latents"] < num_latents:
                raise ValueError(
                    f"sample {entry['id']} has {entry['num_latents']} latents; {num_latents} are asked for"
                )
        if all(index in self.cache for index in indices):
            found = [self.cache[index] for index in indices]
        else:
            with ThreadPoolExecutor(8) as pool:  # a ranged read from S3 is mostly waiting
                found = list(pool.map(self.__getitem__, indices))
        num_frames = 4 * (num_latents - 1) + 1
        latents = torch.stack([sample["latents"][:num_latents] for sample in found])
        texts = self._texts([self.entries[index][1] for index in indices])
        conditions = Conditions(
            actions=torch.stack([sample["actions"][:num_frames] for sample in found]),
            poses=torch.stack([sample["poses"][:num_frames] for sample in found]),
            text=texts[1:],
            empty=texts[:1],
        )
        return Batch(latents.to(device).float(), conditions.to(device))

    def _texts(self, entries: list[dict]) -> Tensor:
        """Token ids [1 + B, L] or embeddings [1 + B, L, width] of the empty prompt and of the samples' captions."""
        if self.embedded is None:
            return text.tokenize(["", *(entry["caption"] for entry in entries)], self.text_tokens)
        keys = [embeddings.key(""), *(entry["text"] for entry in entries)]
        return text.padded([self.embedded[key] for key in keys], self.text_tokens).float()
