"""Samples that are arrays, for people: pictures as PNG, small vectors as numbers."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from coterie.tasks.base import Latent

URI = "data:image/png;base64,"
"""How a picture begins where a text would stand."""


def view(sample: np.ndarray, latent: Latent) -> str:
    """A picture as a data URI; an array that is none as its numbers."""
    if sample.ndim != 2:
        return " ".join(f"{x:.3g}" for x in sample.ravel().tolist())
    return URI + base64.b64encode(png(grey(sample, latent))).decode("ascii")


def grey(sample: np.ndarray, latent: Latent) -> np.ndarray:
    """Values from low to high as 0 to 255."""
    share = (np.nan_to_num(sample) - latent.low) / (latent.high - latent.low)
    return (np.clip(share, 0.0, 1.0) * 255).round().astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A grey picture [H,W] uint8 as a PNG file."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))  # a filter byte a row: none
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
