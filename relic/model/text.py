"""The tiny recipes' text: words hashed to token ids, whose embeddings the transformer learns. Real sizes use umT5."""

import re
import zlib

import torch
from torch import Tensor

VOCABULARY = 512  # id 0 is padding; words fall on 1..511


def tokenize(captions: list[str], length: int) -> Tensor:
    """Token ids [B, length] int64 of captions; longer ones are cut, shorter ones padded with 0; "" is all padding."""
    ids = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in enumerate(captions):
        words = re.findall(r"\w+", caption.lower())[:length]
        for column, word in enumerate(words):
            ids[row, column] = 1 + zlib.crc32(word.encode()) % (VOCABULARY - 1)
    return ids
