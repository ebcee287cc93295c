"""umT5, Wan's text encoder, by transformers: a caption's tokens as embeddings, as diffusers' WanPipeline has them.

WanPipeline also repairs broken Unicode where ftfy is installed; captions here are expected to be whole."""

import html
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, UMT5EncoderModel

from relic.model.text import padded

LENGTH = 512  # tokens that Wan was trained with


class TextEncoder:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel):
        self.tokenizer, self.model = tokenizer, model

    @torch.inference_mode()
    def tokens_of(self, caption: str, length: int = LENGTH) -> Tensor:
        """Embeddings [n, width] of a caption's n tokens, its end among them; a longer caption is cut to `length`.

        It is padded to `length` and passes alone: its bits depend on no other caption."""
        given = self.tokenizer(
            [clean(caption)], padding="max_length", max_length=length, truncation=True, add_special_tokens=True,
            return_attention_mask=True, return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        states = self.model(given.input_ids, given.attention_mask).last_hidden_state
        return states[0, : int(given.attention_mask.sum())].clone()  # a view would keep the padding

    def embed(self, captions: list[str], length: int = LENGTH) -> Tensor:
        """Embeddings [B, length, width] of captions, zero behind their tokens."""
        return padded([self.tokens_of(caption, length) for caption in captions], length)


def load(folder: Path, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> TextEncoder:
    """The text encoder of a local folder: `tokenizer/` and `text_encoder/`, as diffusers lays them out, or both in one.

    ValueError where a file or a tensor is missing."""
    places = [folder / name if (folder / name).is_dir() else folder for name in ("tokenizer", "text_encoder")]
    for place, name in zip(places, ("tokenizer_config.json", "config.json"), strict=True):
        if not (place / name).is_file():
            raise ValueError(f"{place} has no {name}; a text encoder's folder has umT5 and its tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(places[0], local_files_only=True)
    loaded: Any = UMT5EncoderModel.from_pretrained(
        places[1], dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, found = loaded
    for name in sorted(found["missing_keys"]):
        raise ValueError(f"{places[1]}: tensor {name} is missing; transformers would draw it at random")
    return TextEncoder(tokenizer, model.to(device).eval())


def clean(caption: str) -> str:
    """HTML's entities resolved, twice for those that were escaped twice, and white space made single spaces."""
    return " ".join(html.unescape(html.unescape(caption)).split())
