"""Captions as a model takes them: token ids of its own hashed words, or umT5's embeddings."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relic.model import config
from relic.model.text import padded, tokenize

if TYPE_CHECKING:
    from relic.pretrained.text import TextEncoder

KEPT = 512  # captions whose embeddings stay in memory
Words = Callable[[list[str]], Tensor]  # captions -> [B, L] int64, or [B, L, width] float32


def of(model: config.Transformer, text_encoder: str, device: torch.device | str) -> Words:
    """What turns captions into the text of this model, each embedded once; transformers is imported for umT5 only."""
    if model.text_vocabulary:
        if text_encoder:
            raise ValueError(f"text_encoder is {text_encoder!r}; the model has words of its own and takes none")
        return lambda captions: tokenize(captions, model.text_tokens)
    if not text_encoder:
        raise ValueError("the model takes umT5's embeddings; give umT5's folder as text_encoder")
    encoder, known = load(Path(text_encoder), device), dict[str, Tensor]()

    def embedded(captions: list[str]) -> Tensor:
        for caption in dict.fromkeys(captions):
            if caption not in known:
                known[caption] = encoder.tokens_of(caption, model.text_tokens).cpu()
        rows = [known[caption] for caption in captions]
        while len(known) > KEPT:
            del known[next(iter(known))]
        return padded(rows, model.text_tokens).float()

    return embedded


def load(folder: Path, device: torch.device | str) -> "TextEncoder":
    """umT5 (pretrained/text.py)."""
    try:
        from relic.pretrained import text
    except ModuleNotFoundError as error:
        raise ValueError(f"text_encoder needs {error.name}; install the extra: pip install 'relic[wan]'") from error
    return text.load(folder, device)
