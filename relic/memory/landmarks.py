"""Landmarks: a fixed number of old latents kept whole, chosen for showing different views, found again by pose.

Ours, beside RELIC: what is pooled loses the detail that a return needs (Echo-Memory says so of compression alone). Each
sample has its own, so all choices are made on the device, by fixed shapes and without asking it anything.

The bank has one slot more than landmarks. A latent that leaves the window is written into the free slot; of the two
that now lie closest together the younger one's slot becomes free: what was seen first has drifted least.
"""

import copy

import torch
from torch import Tensor

from relic.memory.store import Store


def distance(a: Tensor, b: Tensor, degrees_per_step: float) -> Tensor:
    """How far apart [...] the views of poses [..., 4, 4] are, in steps; a turn of `degrees_per_step` is one."""
    moved = (a[..., :3, 3] - b[..., :3, 3]).norm(dim=-1)
    cosine = ((a[..., :3, :3] * b[..., :3, :3]).sum((-1, -2)) - 1) / 2
    return moved + torch.rad2deg(cosine.clamp(-1, 1).acos()) / degrees_per_step


class Landmarks:
    """The bank: whole latents [2, layers, B, slot, tokens, K, head_width], their poses and absolute indices."""

    def __init__(self, count: int, degrees_per_step: float, store: Store):
        batch, device = store.data.shape[2], store.data.device
        self.count, self.degrees_per_step, self.store = count, degrees_per_step, store
        self.poses = torch.zeros(batch, count + 1, 4, 4, device=device)
        self.latents = torch.zeros(batch, count + 1, dtype=torch.int64, device=device)
        self.samples = torch.arange(batch, device=device)
        self.filled = 0  # slots that were ever written
        self.free = torch.zeros(batch, dtype=torch.int64, device=device)  # the slot that is written next

    def place(self, latent: int, pose: Tensor) -> Tensor:
        """The slots [B] into which a latent must be written whose camera is at `pose` [B, 4, 4]."""
        self.store = self.store.own(self)
        slot = self.free
        self.poses[self.samples, slot], self.latents[self.samples, slot] = pose.to(self.poses.dtype), latent
        self.filled = min(self.filled + 1, self.count + 1)
        self.free = self._superfluous() if self.filled > self.count else slot + 1
        return slot

    def _superfluous(self) -> Tensor:
        """The slots [B] of the younger of the two landmarks that lie closest together."""
        apart = distance(self.poses[:, :, None], self.poses[:, None], self.degrees_per_step)
        apart = apart + torch.diag(apart.new_full((self.count + 1,), torch.inf))
        closest = apart.flatten(1).argmin(1)
        pair = torch.stack([closest // (self.count + 1), closest % (self.count + 1)], 1)
        younger = self.latents.gather(1, pair).argmax(1)
        return pair[self.samples, younger]

    def nearest(self, poses: Tensor, count: int) -> Tensor:
        """The slots [B, count] of the landmarks nearest to any of the poses [B, n, 4, 4]."""
        apart = distance(self.poses[:, :, None], poses[:, None].to(self.poses.dtype), self.degrees_per_step).amin(-1)
        slots = torch.arange(self.count + 1, device=apart.device)
        unusable = (slots >= self.filled) | (slots == self.free[:, None])
        return apart.masked_fill(unusable, torch.inf).topk(count, largest=False).indices

    def branch(self) -> "Landmarks":
        """A bank that goes on from here; the latents themselves are shared until one of both takes in a new one, and
        copies all of them."""
        made = copy.copy(self)
        self.store.owners.update((self, made))
        made.poses, made.latents = self.poses.clone(), self.latents.clone()
        return made
