"""Samples that are arrays, for people: pictures as PNG, small vectors as numbers."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from coterie.tasks.base import Latent

URI = "data:image/png;base64,"
"""How a picture begins where a text would stand."""
FRAMES = 4
"""Frames of a video that are shown."""


def view(sample: np.ndarray, latent: Latent) -> str:
    """A picture as a data URI; an array that is none as its numbers."""
    flat = side_by_side(sample)
    if flat.ndim == 1 or (flat.ndim == 3 and flat.shape[-1] != 3):
        return " ".join(f"{x:.3g}" for x in sample.ravel().tolist())
    return URI + base64.b64encode(png(to_bytes(flat, latent))).decode("ascii")


def side_by_side(sample: np.ndarray) -> np.ndarray:
    """A video [F,H,W,3] as one picture: a few of its frames, from the first to the last. Other samples as they are."""
    if sample.ndim != 4:
        return sample
    chosen = np.linspace(0, len(sample) - 1, min(FRAMES, len(sample))).round().astype(int)
    return np.concatenate([sample[i] for i in chosen], axis=1)


def to_bytes(sample: np.ndarray, latent: Latent) -> np.ndarray:
    """Values from low to high as 0 to 255 in colours; in grey [H,W] as 255 to 0, ink on paper."""
    share = (np.nan_to_num(sample) - latent.low) / (latent.high - latent.low)
    share = 1.0 - share if sample.ndim == 2 else share
    return (np.clip(share, 0.0, 1.0) * 255).round().astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A picture [H,W] (grey) or [H,W,3], uint8, as a PNG file."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))  # a filter byte a row: none
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
