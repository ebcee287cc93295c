"""The format of a stream, which server, router and client share."""

import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from relic.geometry.actions import magnitudes, signed
from relic.serve import wire


def packed(still: bool = False) -> bytes:
    encoded: Future[bytes] = Future()
    encoded.set_result(b"jpeg")
    picture = wire.Picture(3, 9, np.arange(16.0).reshape(4, 4), encoded, 5.0, still=still)
    return wire.pack(picture, 7.0)


def test_a_picture_is_packed_as_its_header_says():
    data = packed()
    assert wire.HEADER.unpack_from(data) == (1, 0, 76, 3, 9, 5.0, 7.0, *range(12))
    assert data[76:] == b"jpeg"


def test_what_is_packed_is_unpacked():
    header, data = wire.unpacked(packed(still=True))
    assert data == b"jpeg"
    assert header == {"version": 1, "flags": wire.STILL, "sequence": 3, "receipt": 9, "made": 5.0, "sent": 7.0,
                      "pose": list(range(12))}  # fmt: skip


def test_an_action_settles_as_algorithm_1_has_it():
    rows = np.random.default_rng(0).integers(0, 2, (500, 13)) * 1.7  # opposites are often equal
    found = np.stack([wire.settled(row) for row in rows])
    np.testing.assert_array_equal(found, magnitudes(signed(torch.from_numpy(rows))).numpy())
    assert {0.0, 1.0} == set(found[:, -1])


def test_the_format_loads_no_torch():
    script = "import sys, relic.serve.wire\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
