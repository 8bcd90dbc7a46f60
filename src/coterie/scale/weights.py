"""The policy's trainable weights as a few flat buckets of bytes, and back into the weights of another, in place."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

BUCKET = 2**26
"""Bytes that travel at once; a larger weight travels alone."""
_ALIGNED = 8


def pack(state: Mapping[str, Tensor], size: int = BUCKET) -> Iterator[np.ndarray]:
    """The tensors' bytes in order, each padded to a multiple of eight, about `size` at once, in new memory."""
    bucket: list[Tensor] = []
    for tensor in state.values():
        raw = _bytes(tensor)
        if bucket and sum(map(len, bucket)) + len(raw) > size:
            yield torch.cat(bucket).numpy()
            bucket = []
        bucket += [raw, raw.new_zeros(-len(raw) % _ALIGNED)]
    if bucket:
        yield torch.cat(bucket).numpy()


@torch.no_grad()
def unpack(buckets: Sequence[np.ndarray], state: Mapping[str, Tensor]) -> None:
    """Copy what `pack` made of tensors with the same shapes and types into `state`."""
    waiting = list(state.values())
    for bucket in buckets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # shared memory is read-only, and is only read here
            flat = torch.from_numpy(bucket)
        at = 0
        while at < len(flat):
            tensor = waiting.pop(0)
            length = tensor.numel() * tensor.element_size()
            tensor.copy_(flat[at : at + length].view(tensor.dtype).view(tensor.shape))
            at += length + -length % _ALIGNED
    if waiting:
        raise ValueError(f"{len(waiting)} weights are missing")


def digest(state: Mapping[str, Tensor]) -> int:
    """A checksum of the tensors' bytes, in order."""
    value = 0
    for tensor in state.values():
        value = zlib.crc32(_bytes(tensor).numpy().data, value)
    return value


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8).cpu()
