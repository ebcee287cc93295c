"""Image files: start images in, pictures out. Loads no torch, because the process that decodes uploads needs none."""

import base64
import binascii
import io
import math
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from relic.serve.config import FORMATS

KINDS = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


class TooLarge(ValueError):
    """More bytes or pixels than the server takes."""


def encode(frame: np.ndarray, kind: str, quality: int) -> bytes:
    """A frame uint8 [H, W, 3] as one of config.PICTURES; colour at full resolution, as pictures are small."""
    buffer = io.BytesIO()
    if kind == "webp":
        Image.fromarray(frame).save(buffer, "WEBP", quality=quality, method=0)  # its quickest
    else:
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def from_base64(encoded: str, most_bytes: int) -> bytes:
    """The bytes of an image file in base64, perhaps as a data: URL."""
    encoded = encoded.partition(",")[2] if encoded.startswith("data:") else encoded
    if len(encoded) * 3 // 4 > most_bytes + 2:
        raise TooLarge(f"the image has {len(encoded) * 3 // 4} bytes; allowed are {most_bytes}")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the image is broken ({shown(str(error))}); allowed is a {KINDS} in base64") from error


def fit(data: bytes, *, height: int, width: int, most_pixels: int, allowed: str = KINDS) -> np.ndarray:
    """The middle of an image file, cropped and resized: uint8 [height, width, 3]."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if math.prod(image.size) > most_pixels:
                raise TooLarge(f"the image is {image.width}x{image.height}; allowed are {most_pixels} pixels")
            image.draft("RGB", (2 * max(width, height),) * 2)
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except TooLarge:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image has too many pixels; allowed are {most_pixels}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"the image is of no known format; allowed is a {allowed}") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"the image is broken ({shown(str(error))}); allowed is a {allowed}") from error
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))


def shown(value: object) -> str:
    """A value as a sentence can carry it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
