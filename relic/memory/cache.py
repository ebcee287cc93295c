"""RELIC's compressed attention memory (section 4.3): keys and values of every block, in storage allocated once.

What is kept of a walk of n latents, by the paper's policy with a window of w:

    window  a ring of w latents, whole: latent i lies in place i mod w
    pages   the older ones, each pooled in space once, when it leaves the window, by the schedule of its absolute index;
            a page has the places of some latents that follow one another, a whole number of the schedule's cycles
    image   latent 0 has a page of its own and stays: attention leans on its first tokens

and, by "relic_landmarks", whole latents chosen by their cameras (memory/landmarks.py). "window" has no pages but the
image's, "full" has pages whose latents are whole. `parts` reads what a chunk is shown.

Appending a latent reads one place of the window and writes two places, so it costs the same at latent 20 and at latent
2000. Beyond the capacity the oldest pooled latents leave: `reserve` gives pages free that nothing is shown of any more,
and the times of all but the image's move down, so that positions never pass the capacity, however long the walk. Which
latents are shown is a function of two counts alone (memory/config.py), all shapes repeat with the schedule, and nothing
is ever asked of the device: a pass can be captured as a CUDA graph, one for each state of the schedule.

Keys are stored before RoPE. Rotated keys of neighbouring cells point in different directions, so that their mean nearly
cancels in the fast frequencies; pooled first and rotated at the pooled cell's centre, they keep their length.

A page never changes after its last latent has come, so `branch` copies the window and shares the rest; who first
writes to a shared page, or to the shared bank of landmarks, copies that. A snapshot is a branch that is not walked on,
and going back to it is another one.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from relic.memory import config
from relic.memory.config import Slot, pooled_tokens
from relic.memory.landmarks import Landmarks
from relic.memory.pooling import centres, log_cells, pool
from relic.memory.store import Store

EVERY = slice(None)
IMAGE = -1  # the page of latent 0


class Part(NamedTuple):
    """Tokens that lie together in one store."""

    store: Store
    at: tuple[slice | Tensor, ...]  # the store's index after (keys or values, block)
    positions: Tensor  # (time, row, column) [n, 3], or [B, n, 3] where the samples differ
    log_cells: Tensor  # [n], of how many cells each token stands for

    def read(self, layers: slice) -> Tensor:
        """Keys (before RoPE) and values [2, layers, B, n, K, head_width] of some blocks, float32."""
        return self.store.read((EVERY, layers, *self.at)).flatten(3, -3)

    def write(self, x: Tensor) -> None:
        """Replaces what `read` gives of all blocks."""
        at = (EVERY, EVERY, *self.at)
        self.store.write(at, x.reshape(self.store.data[at].shape))


class Memory:
    """Remembered keys and values of latents of rows x columns tokens, of `layers` blocks and `batch` samples."""

    def __init__(
        self,
        cfg: config.Memory,
        *,
        layers: int,
        batch: int,
        rows: int,
        columns: int,
        heads: int,
        head_width: int,
        device: torch.device | str = "cpu",
    ):
        self.cfg, self.rows, self.columns, self.whole = cfg, rows, columns, rows * columns
        self.layers, self.batch, self.heads, self.head_width, self.device = layers, batch, heads, head_width, device
        self.num_latents = 0  # remembered so far
        self.forgotten = 0  # of them have left beyond the capacity
        # 1. the window, and the landmarks
        self.window = self._store(cfg.window * self.whole)
        self.landmarks = None
        if cfg.policy == "relic_landmarks":
            bank = self._store(cfg.landmarks + 1, self.whole)
            self.landmarks = Landmarks(cfg.landmarks, cfg.degrees_per_step, bank)
            self.cameras = torch.zeros(batch, cfg.window, 4, 4, device=device)  # of the window's latents
        # 2. the pages: where in one a latent begins, and the place in it, row and column of every token
        strides = cfg.page_strides
        self.per_page = max(1, len(strides))
        self.begins = [0, *itertools.accumulate(pooled_tokens(rows, columns, stride) for stride in strides)]
        self.page_table = self._table(strides)
        self.free = [self._store(self.begins[-1]) for _ in range(cfg.num_pages)]
        self.pages = {IMAGE: self._store(pooled_tokens(rows, columns, cfg.stride(0)))}
        self.image_table, self.whole_table = self._table([cfg.stride(0)]), self._table([1])

    def _store(self, *tokens: int) -> Store:
        shape = (2, self.layers, self.batch, *tokens, self.heads, self.head_width)  # keys, values
        return Store(self.cfg.dtype, shape, self.device)

    def _table(self, strides: list[int]) -> tuple[Tensor, Tensor]:
        """Positions [n, 3] (time, row, column) of the tokens of latents 0, 1, ... with these strides, and the logarithm
        [n] of how many cells each stands for."""
        positions, cells = [torch.zeros(0, 3, dtype=torch.float64)], [torch.zeros(0)]
        for time, stride in enumerate(strides):
            yx = centres(self.rows, self.columns, stride).flatten(0, 1)
            positions.append(torch.cat([torch.full_like(yx[:, :1], time), yx], -1))
            cells.append(log_cells(self.rows, self.columns, stride).flatten())
        return torch.cat(positions).to(self.device), torch.cat(cells).to(self.device)

    @property
    def slots(self) -> list[Slot]:
        """The latents that are remembered, landmarks aside, oldest first."""
        return self.cfg.slots(self.num_latents, self.forgotten)

    @property
    def stores(self) -> list[Store]:
        """All storage; branches may share some."""
        return [self.window, *self.pages.values(), *self.free, *([self.landmarks.store] if self.landmarks else [])]

    @property
    def num_bytes(self) -> int:
        """Bytes of all storage, scales included; constant unless the walk is branched."""
        return sum(store.num_bytes for store in self.stores)

    def time(self, latent: int) -> int:
        """Temporal position of a latent, remembered or to come: its index less those forgotten; the image's is 0."""
        return max(0, latent - self.forgotten)

    def groups(self, tokens: int) -> Iterator[slice]:
        """The blocks, as many at a time as may be worked on in float32 for so many tokens."""
        count = config.layers_at_once(self.batch * self.heads * self.head_width, tokens)
        return (slice(start, start + count) for start in range(0, self.layers, count))

    def reserve(self, count: int) -> None:
        """Forgets the oldest latents but the image, so that `count` more stay within the capacity."""
        self.forgotten = max(self.forgotten, self.cfg.forgotten(self.num_latents, count))
        for number in [n for n in self.pages if n != IMAGE and (n + 1) * self.per_page <= 1 + self.forgotten]:
            page = self.pages.pop(number)
            page.owners.discard(self)
            if not page.owners:
                self.free.append(page)

    def append(
        self,
        keys: Sequence[Tensor] | Tensor,
        values: Sequence[Tensor] | Tensor,
        *,
        poses: Tensor | None = None,
        pooled: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]] = (),
    ) -> None:
        """Remembers the next latents: of every block, keys (before RoPE) and values [B, F * rows * columns, K,
        head_width]; for landmarks also the cameras' poses [B, F, 4, 4] in steps.

        `pooled`: keys and values of those that leave the window, in order, where not the mean of theirs is kept."""
        given = iter(pooled)
        for index, start in enumerate(range(0, keys[0].shape[1], self.whole)):
            place, leaving = self._place(self.num_latents), self.num_latents - self.cfg.window
            # 1. what leaves the window
            if leaving >= 0 and self.cfg.stride(leaving):
                self._compress(leaving, next(given) if pooled else None)
            if self.landmarks is not None:
                assert poses is not None, "landmarks are chosen by poses"
                if leaving > 0 and self.cfg.stride(leaving) > 1:  # else it is whole already
                    self._keep(leaving)
                self.cameras[:, self.num_latents % self.cfg.window] = poses[:, index].to(self.cameras.dtype)
            # 2. the new one in its place
            part = slice(start, start + self.whole)
            for layers in self.groups(self.whole):
                new = torch.stack([torch.stack([x[:, part] for x in of[layers]]) for of in (keys, values)])
                self.window.write((EVERY, layers, EVERY, place), new.float())
            self.num_latents += 1

    def _place(self, latent: int) -> slice:
        start = latent % self.cfg.window * self.whole
        return slice(start, start + self.whole)

    def _compress(self, latent: int, given: tuple[Sequence[Tensor], Sequence[Tensor]] | None) -> None:
        """Writes a latent of the window, pooled by its stride, or what is given for it, into its page."""
        number, part = IMAGE, EVERY
        if latent:
            number, index = divmod(latent, self.per_page)
            part = slice(self.begins[index], self.begins[index + 1])
        if number not in self.pages:
            self.pages[number] = self.free.pop() if self.free else self._store(self.begins[-1])
        self.pages[number] = self.pages[number].own(self)
        for layers in self.groups(self.whole):
            if given is not None:
                x = torch.stack([torch.stack(tuple(of[layers])) for of in given]).float()
            else:
                whole = self.window.read((EVERY, layers, EVERY, self._place(latent)))
                x = rearrange(whole, "s l b (h w) k d -> s l b h w (k d)", h=self.rows)
                x = rearrange(pool(x, self.cfg.stride(latent)), "s l b h w (k d) -> s l b (h w) k d", k=self.heads)
            self.pages[number].write((EVERY, layers, EVERY, part), x)

    def _keep(self, latent: int) -> None:
        """Offers a latent of the window to the landmarks."""
        bank = self.landmarks
        assert bank is not None
        slots = bank.place(latent, self.cameras[:, latent % self.cfg.window])
        for layers in self.groups(self.whole):
            whole = self.window.read((EVERY, layers, EVERY, self._place(latent)))
            bank.store.write((EVERY, layers, bank.samples, slots), whole)

    def parts(self, poses: Tensor | None = None) -> list[Part]:
        """What a chunk is shown whose cameras will be at `poses` [B, n, 4, 4], which only landmarks ask for."""
        count, window = self.num_latents, self.cfg.window
        parts, old = [], count - window
        if old > 0:
            parts.append(Part(self.pages[IMAGE], (EVERY, EVERY), *self.image_table))
        for number, page in sorted(self.pages.items()):
            start = number * self.per_page
            first, last = max(1 + self.forgotten, start) - start, min(old, start + self.per_page) - start
            if number != IMAGE and first < last:
                tokens = slice(self.begins[first], self.begins[last])
                positions = later(self.page_table[0][tokens], start - self.forgotten)
                parts.append(Part(page, (EVERY, tokens), positions, self.page_table[1][tokens]))
        if self.landmarks is not None and (shown := self.cfg.num_retrieved(count)):
            assert poses is not None, "landmarks are chosen by poses"
            parts.append(self._retrieved(self.landmarks, self.landmarks.nearest(poses, shown)))
        if count:
            places = torch.arange(min(count, window), device=self.device)
            times = (count - 1 - (count - 1 - places) % window - self.forgotten).clamp(min=0)
            positions = later(self.whole_table[0].repeat(len(places), 1), times.repeat_interleave(self.whole)[:, None])
            cells = self.whole_table[1].repeat(len(places))
            parts.append(Part(self.window, (EVERY, slice(len(places) * self.whole)), positions, cells))
        return parts

    def _retrieved(self, bank: Landmarks, slots: Tensor) -> Part:
        """The landmarks in these slots [B, n]."""
        samples, count = bank.samples[:, None], slots.shape[1]
        times = (bank.latents[samples, slots] - self.forgotten).clamp(min=0)
        cells = self.whole_table[0].repeat(count, 1).expand(len(slots), -1, -1)
        positions = later(cells, times.repeat_interleave(self.whole, 1)[..., None])
        return Part(bank.store, (samples, slots), positions, self.whole_table[1].repeat(count))

    def branch(self) -> "Memory":
        """A memory that goes on from here on its own: the window is copied, the rest shared until it changes."""
        made = copy.copy(self)
        for page in self.pages.values():
            page.owners.update((self, made))
        made.window, made.pages, made.free = self.window.copy(), dict(self.pages), []
        if self.landmarks is not None:
            made.landmarks, made.cameras = self.landmarks.branch(), self.cameras.clone()
        return made

    def most_bytes(self, *, points: int, every: int) -> int:
        """Bytes of all storage at most, the last `points` branches' included, one made every `every` latents, and those
        of the next before the oldest is dropped."""
        tokens = self.cfg.stored(self.rows, self.columns)
        if points:
            # each has a window, all but the newest a page that has since been written to and a bank of landmarks;
            # together they have the pages that the walk has since left, and the image's as it was in the window
            left = -(-points * every // self.per_page)
            tokens += (points + 1) * self.cfg.window * self.whole + (points + left) * self.begins[-1]
            tokens += points * (self.cfg.landmarks + 1) * self.whole if self.landmarks is not None else 0
            tokens += pooled_tokens(self.rows, self.columns, self.cfg.stride(0))
        return tokens * self.window.num_bytes // (self.cfg.window * self.whole)

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by names that another memory of the same dials and sizes knows; views, but for the
        counts."""
        stores = {f"page{number}": page for number, page in self.pages.items()} | {"window": self.window}
        counts, bank = [self.num_latents, self.forgotten], self.landmarks
        found: dict[str, Tensor] = {}
        if bank is not None:
            stores["landmarks"] = bank.store
            counts.append(bank.filled)
            found |= {"cameras": self.cameras, "poses": bank.poses, "latents": bank.latents, "free": bank.free}
        found["counts"] = torch.tensor(counts)
        return found | {f"{name}.{part}": x for name, store in stores.items() for part, x in store.tensors().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Remembers what the memory does whose `tensors` these are; this one must be new."""
        self.num_latents, self.forgotten, *filled = tensors["counts"].tolist()
        numbers = {int(name.removeprefix("page").partition(".")[0]) for name in tensors if name.startswith("page")}
        for number in numbers - set(self.pages):
            self.pages[number] = self.free.pop() if self.free else self._store(self.begins[-1])
        if self.landmarks is not None:
            self.landmarks.filled = filled[0]
        for name, own in self.tensors().items():
            own.copy_(tensors[name])


def later(positions: Tensor, time: Tensor | int) -> Tensor:
    """Positions [..., n, 3] with `time` added to their times."""
    return torch.cat([positions[..., :1] + time, positions[..., 1:]], -1)
