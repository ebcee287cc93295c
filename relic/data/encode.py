"""From clips to samples: the clip as it is and its palindrome, as latents with an action and a pose a frame."""

from itertools import groupby

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from relic.data import embeddings, palindrome
from relic.data.clip import Clip
from relic.data.config import Shard
from relic.geometry.actions import annotate, integrate
from relic.geometry.config import Actions
from relic.model.codec import VideoCodec
from relic.model.precision import autocast

Sample = tuple[dict, dict[str, Tensor]]  # what the index says of it, and its tensors


def samples_of(clips: list[Clip], codec: VideoCodec, cfg: Shard, device: torch.device | str) -> list[Sample]:
    """The samples of clips in order, a clip's palindrome behind it. A clip is cut to 4 (F - 1) + 1 frames."""
    about, videos, tracks = [], [], []
    for clip in clips:
        if len(clip.frames) < 5:
            raise ValueError(f"clip {clip.id} has {len(clip.frames)} frames; a sample needs at least 5")
        num_frames = (len(clip.frames) - 1) // 4 * 4 + 1
        pivot = palindrome.pivot_of(num_frames, seed=cfg.seed, clip=clip.id, share=cfg.palindromes)
        orders = [np.arange(num_frames)] + ([] if pivot is None else [palindrome.indices(num_frames, pivot)])
        for order, suffix in zip(orders, ("", "-palindrome"), strict=False):
            videos.append(clip.frames[order])
            tracks.append(controls(clip.poses[order], cfg.actions))
            about.append({"id": clip.id + suffix, "clip": clip.id, "region": clip.region, "caption": clip.caption,
                          "palindrome": bool(suffix)})  # fmt: skip
            if cfg.text_encoder:
                about[-1]["text"] = embeddings.key(clip.caption)
    samples: list[Sample] = []
    for facts, latents, (actions, poses) in zip(about, encode(codec, videos, device), tracks, strict=True):
        if not latents.isfinite().all():
            raise ValueError(
                f"clip {facts['clip']} has latents that are not finite in float16; the codec is not usable"
            )
        share = (actions[1:] > 0).double().mean(0)
        facts |= {"num_latents": len(latents), "action_share": [round(x, 4) for x in share.tolist()]}
        samples.append((facts, {"latents": latents, "actions": actions, "poses": poses}))
    return samples


def controls(poses: np.ndarray, cfg: Actions) -> tuple[Tensor, Tensor]:
    """Actions [T, 13] and the poses [T, 4, 4] that the model is given, float32: the integral of those very actions, for
    that is all that serving has. Their unit is the mean step of the whole clip, however short a piece is trained on."""
    actions = annotate(torch.from_numpy(poses), cfg).float()
    return actions, integrate(actions, cfg).float()


@torch.inference_mode()
def encode(codec: VideoCodec, videos: list[np.ndarray], device: torch.device | str) -> list[Tensor]:
    """Normalised latents float16 [F, C, h, w] of each video uint8 [T, H, W, 3].

    A GPU takes neighbours of one shape together. A CPU takes them one by one, which keeps activations in its cache: 61
    frames of 64x96 cost one core of a Xeon with AVX-512 BF16 0.08 s, in a batch of 8 0.22 s each. In bfloat16, taken
    where it is native, they cost a quarter of float32's time and the latents differ by 0.3 % of their spread."""
    latents: list[Tensor] = []
    alone = torch.device(device).type == "cpu"
    for _, group in groupby(enumerate(videos), key=lambda item: (item[1].shape, item[0] if alone else 0)):
        batch = torch.from_numpy(np.stack([video for _, video in group])).to(device)
        frames = rearrange(batch, "b t h w c -> b t c h w").float().div(255)
        with autocast(device):
            encoded = codec.encode(frames)
        latents += encoded.to("cpu", torch.float16).contiguous().unbind(0)
    return latents
