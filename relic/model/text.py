"""The tiny recipes' text: words hashed to token ids, whose embeddings the transformer learns. Real sizes use umT5, and
its embeddings are kept without their padding."""

import re
import zlib

import torch
from torch import Tensor
from torch.nn import functional

VOCABULARY = 512  # id 0 is padding; words fall on 1..511


def tokenize(captions: list[str], length: int) -> Tensor:
    """Token ids [B, length] int64 of captions; longer ones are cut, shorter ones padded with 0; "" is all padding."""
    ids = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in enumerate(captions):
        words = re.findall(r"\w+", caption.lower())[:length]
        for column, word in enumerate(words):
            ids[row, column] = 1 + zlib.crc32(word.encode()) % (VOCABULARY - 1)
    return ids


def padded(rows: list[Tensor], length: int) -> Tensor:
    """Embeddings [B, length, width] of captions' [n, width], zero behind their tokens."""
    longest = max(map(len, rows))
    if longest > length:
        raise ValueError(f"a caption has {longest} tokens; the model's text_tokens is {length}")
    return torch.stack([functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
