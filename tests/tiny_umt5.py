"""A umT5 of width 16 with random weights and a tokenizer of a few words, in diffusers' layout."""

from pathlib import Path

import torch
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

WORDS = ("▁a", "▁room", "▁called", "▁walk", "-", "▁", "s", "&", "<", *"0123456789")
WIDTH = 16


def write(folder: Path) -> Path:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), *((word, -2.0) for word in WORDS)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    cfg = UMT5Config(vocab_size=len(vocabulary), d_model=WIDTH, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    UMT5EncoderModel(cfg).save_pretrained(folder / "text_encoder")
    return folder
