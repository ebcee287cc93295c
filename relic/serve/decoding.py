"""From a chunk's latents to its pictures, one latent after the other, so that the first can be sent before the last is
decoded.

On a GPU the codec has a CUDA stream of its own. Its small kernels run beside the pass that lets the memory keep the
chunk, and its pictures are copied to pinned memory; the host waits for one latent's pictures and nothing else.
"""

import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from relic.model.codec import Stream
from relic.model.precision import autocast

Pictures = Iterator[tuple[np.ndarray, np.ndarray]]  # frames uint8 [n, H, W, 3] and poses [n, 4, 4] of each latent


class Decoder(Protocol):
    at_once: bool  # whether `start` has begun when it returns
    seconds: float  # of the latest chunk
    finite: bool  # whether all its latents are, once its pictures are read

    def start(self, stream: Stream, latents: Tensor, poses: Tensor) -> Pictures:
        """Decodes the next latents [1, F, C, h, w] of a stream, at the frames' poses [T, 4, 4]; latents that are not
        finite give no pictures."""
        ...


def decoder_on(device: torch.device) -> Decoder:
    return Aside(device) if device.type == "cuda" else InTurn()


class InTurn:
    """Decodes a latent when it is asked for."""

    at_once = False

    def __init__(self) -> None:
        self.seconds, self.finite = 0.0, True

    def start(self, stream: Stream, latents: Tensor, poses: Tensor) -> Pictures:
        self.seconds, self.finite, shown = 0.0, bool(latents.isfinite().all()), 0
        for latent in latents.split(1, 1) if self.finite else ():
            began = time.perf_counter()
            frames = pictures(stream, latent).numpy()
            self.seconds += time.perf_counter() - began
            yield frames, poses[shown : shown + len(frames)].numpy()
            shown += len(frames)


class Aside:
    """Decodes on a CUDA stream of its own."""

    at_once = True

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device, priority=-1)  # before the pass that the memory asks for
        self.seconds, self.finite = 0.0, True

    def start(self, stream: Stream, latents: Tensor, poses: Tensor) -> Pictures:
        began, pieces = torch.cuda.Event(enable_timing=True), []
        for x in (latents, poses, *stream.tensors().values()):  # the last, of a restored walk, are of another stream
            if x.is_cuda:
                x.record_stream(self.stream)
        self.stream.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(self.stream):
            began.record()
            placed, finite = on_host(poses), on_host(latents.isfinite().all())
            for latent in latents.split(1, 1):
                frames = on_host(pictures(stream, latent))
                done = torch.cuda.Event(enable_timing=True)
                done.record()
                pieces.append((frames, done))
        return self.ready(pieces, placed, finite, began)

    def ready(
        self, pieces: list[tuple[Tensor, torch.cuda.Event]], poses: Tensor, finite: Tensor, began: torch.cuda.Event
    ) -> Pictures:
        shown = 0
        for frames, done in pieces:
            done.synchronize()
            self.finite = bool(finite)
            if not self.finite:
                return
            self.seconds = began.elapsed_time(done) / 1000
            yield frames.numpy(), poses[shown : shown + len(frames)].numpy()
            shown += len(frames)


def on_host(x: Tensor) -> Tensor:
    """A copy in pinned memory, which is there when the stream has come so far."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def pictures(stream: Stream, latents: Tensor) -> Tensor:
    """The pictures uint8 [n, H, W, 3] that the next latents [1, F, C, h, w] of a stream make ready."""
    with autocast(latents.device):
        frames = stream.decode(latents)[0].float().clamp(0, 1)
    return rearrange((frames * 255).round().to(torch.uint8), "n c h w -> n h w c").contiguous()
