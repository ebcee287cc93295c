"""Samples for a training step: the latents of a length, with the actions, poses and caption that belong to them.

A shorter piece of a sample is always its beginning: the codec is causal, so a latent in the middle was made knowing
what came before, and only latent 0 stands for one frame. Actions keep the scale of the whole clip (section 3.3 of
RELIC): one unit is its mean step, whatever of it is taken.

`Dataset.ahead` fetches batches while a step runs, by threads: reading, hashing and stacking need little of Python's
lock. Four samples of 317 frames at 480x832 (64 MB), from local files, take 0.13 s on two busy cores; behind a step of
0.5 s nothing of that is left to wait for.

A sample that stays damaged may be skipped. What comes in its place is a function of its number, and a store that cannot
be reached is no damage and always stops. So processes that read the same samples (sequence parallel) agree without a
word, and a resumed training takes what an uninterrupted one takes.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from relic import artifacts
from relic.data import embeddings, sampler, shards
from relic.data.cache import Cache
from relic.data.config import Loader
from relic.model import config, text
from relic.model.conditions import Conditions

READERS = 8  # threads: a ranged read from S3 is mostly waiting
SUBSTITUTES = 16  # that are tried in the place of a damaged sample
DEFAULTS = Loader()


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # [B, F, C, h, w] float32, normalised
    conditions: Conditions  # of the 4 (F - 1) + 1 frames

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with a change made to every tensor."""
        given = self.conditions
        tensors = (given.actions, given.poses, given.text, given.empty)
        return Batch(change(self.latents), Conditions(*map(change, tensors)))


def load(samples: list[Path], model: config.Transformer, cfg: Loader = DEFAULTS) -> "Dataset":
    """The samples of artifacts of shard or join, with text as `model` takes it."""
    indexed = [(folder, shards.read_index(folder)) for folder in samples]
    shapes = {tuple(index["latent_shape"]) for _, index in indexed}
    found = [(entry.get("artifact", str(folder)), entry) for folder, index in indexed for entry in index["samples"]]
    if not found:
        raise ValueError(
            f"there are no samples in {', '.join(map(str, samples)) or 'no artifact'}; at least one is needed"
        )
    if len(shapes) > 1:
        raise ValueError(f"samples have latents of {sorted(shapes)}; one training takes one shape [C, h, w]")
    embedded = None if model.text_vocabulary else embeddings.read(samples)
    if embedded and (width := embedded[embeddings.key("")].shape[1]) != model.text_width:
        raise ValueError(f"captions have embeddings of width {width}; the model's text_width is {model.text_width}")
    cache = Cache(artifacts.cache_folder() / "samples", cfg.cache_bytes) if cfg.cache_bytes else None
    sources = {uri: shards.open_shards(uri, cache) for uri in dict.fromkeys(uri for uri, _ in found)}
    entries = [(sources[uri], entry) for uri, entry in found]
    sets = sets_of([index["samples"] for _, index in indexed], cfg)
    return Dataset(entries, sets, cfg, text_tokens=model.text_tokens, embedded=embedded)


def sets_of(found: list[list[dict]], cfg: Loader) -> list[sampler.Set]:
    """What samples, here the indices' entries, are drawn by: without a mixture they are one set, else an artifact is a
    set, balanced in itself."""
    if cfg.mixture and len(cfg.mixture) != len(found):
        raise ValueError(f"mixture is {cfg.mixture} for {len(found)} artifact(s) of samples; each needs one share")
    parts = found if cfg.mixture else [list(itertools.chain(*found))]
    sets, first = [], 0
    for part, share in zip(parts, cfg.mixture or (1.0,), strict=True):
        occurring = [entry["action_share"] for entry in part]
        weights = sampler.balanced_weights(occurring, bound=cfg.max_weight) if part and cfg.max_weight > 1 else None
        sets.append(sampler.Set(size=len(part), first=first, share=share, weights=weights))
        first += len(part)
    return sets


class Dataset:
    """Samples by number, read when first asked for. entries: (shards, entry of their index); sets: what they are drawn
    by; embedded: their captions' embeddings by key, None for hashed words.

    `skipped` is how many damaged samples others stood in for."""

    def __init__(
        self,
        entries: list[tuple[shards.Source, dict]],
        sets: list[sampler.Set],
        cfg: Loader,
        *,
        text_tokens: int,
        embedded: Mapping[str, Tensor] | None,
    ) -> None:
        self.entries, self.sets, self.cfg = entries, sets, cfg
        self.text_tokens = text_tokens
        self.embedded = embedded
        self.is_cached = sum(entry["length"] for _, entry in entries) <= cfg.memory_bytes
        self.cache: dict[int, dict[str, Tensor]] = {}
        self.damaged: set[int] = set()
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """latents float16 [F, C, h, w], actions [F_px, 13] and poses [F_px, 4, 4] float32 of a whole sample."""
        if index in self.cache:
            return self.cache[index]
        found = shards.read(*self.entries[index], retries=self.cfg.retries, pause_s=self.cfg.pause_s)
        if self.is_cached:
            self.cache[index] = found
        return found

    def indices(self, seed: int, step: int, global_batch: int) -> list[int]:
        """The samples of a step's global batch, balanced over the actions. Every process takes its rows of it."""
        return sampler.indices(seed, step, global_batch=global_batch, sets=self.sets)

    def batch(self, indices: Sequence[int], *, num_latents: int, device: torch.device | str = "cpu") -> Batch:
        """The first `num_latents` latents of samples and the conditions of their frames."""
        with ThreadPoolExecutor(READERS) as readers:  # which starts none where all is in memory
            return self._arrived(*self._on_host(indices, num_latents, readers), device)

    def ahead(
        self, requests: Iterable[tuple[Sequence[int], int]], *, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """`batch` of every (indices, num_latents) in order, of which `prefetch` are fetched beyond the one that is
        asked for, into pinned memory for a GPU. What goes wrong with a batch is raised where it would come. Closed, or
        collected, it gives up what is not read yet."""
        remaining, pending, place = iter(requests), deque[Future[tuple[Batch, int]]](), torch.device(device)
        is_cuda = place.type == "cuda"
        if is_cuda and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        readers = ThreadPoolExecutor(READERS)
        own_gpu = partial(torch.cuda.set_device, place) if is_cuda else None  # of a thread, to pin memory for
        batches = ThreadPoolExecutor(self.cfg.prefetch + 1, initializer=own_gpu)
        try:
            while True:
                for indices, num_latents in itertools.islice(remaining, self.cfg.prefetch + 1 - len(pending)):
                    pending.append(batches.submit(self._on_host, indices, num_latents, readers, pinned=is_cuda))
                if not pending:
                    return
                yield self._arrived(*pending.popleft().result(), place)
        finally:
            batches.shutdown(wait=False, cancel_futures=True)
            readers.shutdown(wait=False, cancel_futures=True)

    def _arrived(self, batch: Batch, skipped: int, device: torch.device | str) -> Batch:
        """The batch on a device, its skipped samples counted."""
        self.skipped += skipped
        moved = batch.changed(lambda tensor: tensor.to(device, non_blocking=True))
        return Batch(moved.latents.float(), moved.conditions)

    def _on_host(
        self, indices: Sequence[int], num_latents: int, readers: Executor, *, pinned: bool = False
    ) -> tuple[Batch, int]:
        """A batch with latents as they are kept, float16, and how many of its samples stand in for others."""
        if all(index in self.cache for index in indices):
            taken = [self._taken(index) for index in indices]
        else:
            taken = list(readers.map(self._taken, indices))
        given = [self.entries[index][1] for index, _ in taken]
        for entry in given:
            if entry["num_latents"] < num_latents:
                raise ValueError(
                    f"sample {entry['id']} has {entry['num_latents']} latents; {num_latents} are asked for"
                )
        num_frames = 4 * (num_latents - 1) + 1
        texts = self._texts(given)
        conditions = Conditions(
            actions=torch.stack([sample["actions"][:num_frames] for _, sample in taken]),
            poses=torch.stack([sample["poses"][:num_frames] for _, sample in taken]),
            text=texts[1:],
            empty=texts[:1],
        )
        batch = Batch(torch.stack([sample["latents"][:num_latents] for _, sample in taken]), conditions)
        skipped = sum(index != asked for (index, _), asked in zip(taken, indices, strict=True))
        return batch.changed(Tensor.pin_memory) if pinned else batch, skipped

    def _taken(self, index: int) -> tuple[int, dict[str, Tensor]]:
        """A sample by its number; where damaged ones are skipped, maybe another one of its set, by that one's."""
        if self.cfg.damaged == "stop":
            return index, self[index]
        drawn = next(each for each in self.sets if index < each.first + each.size)
        for number in itertools.chain([index], itertools.islice(sampler.substitutes(index, drawn), SUBSTITUTES)):
            if number in self.damaged:
                continue
            try:
                return number, self[number]
            except shards.Damaged as error:
                self.damaged.add(number)
                print(f"skipped: {error}", flush=True)
        raise ValueError(
            f"sample {self.entries[index][1]['id']} is damaged, and so is each of the {SUBSTITUTES} samples drawn to "
            "take its place; at least one must be whole"
        )

    def _texts(self, entries: list[dict]) -> Tensor:
        """Token ids [1 + B, L] or embeddings [1 + B, L, width] of the empty prompt and of the samples' captions."""
        if self.embedded is None:
            return text.tokenize(["", *(entry["caption"] for entry in entries)], self.text_tokens)
        keys = [embeddings.key(""), *(entry["text"] for entry in entries)]
        return text.padded([self.embedded[key] for key in keys], self.text_tokens).float()
