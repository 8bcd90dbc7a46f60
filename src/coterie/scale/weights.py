"""The policy's trainable weights as flat buckets of bytes, and back into the weights of another, in place.

Memory that a process touches for the first time costs several times the copy into it. So small weights pass through one
bucket that is used again and again, and a large one that is in main memory is lent out as it lies.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
import xxhash
from torch import Tensor

BUCKET = 2**26
"""Bytes of small weights that travel at once."""
LARGE = 2**25
"""Bytes of a weight that travels alone."""
_ALIGNED = 8


class Packer:
    """Packs weights into buckets. Once all are packed, `digest` is their checksum."""

    def __init__(self, size: int = BUCKET) -> None:
        self.size, self.digest = size, 0
        self._bucket = torch.empty(0, dtype=torch.uint8)

    def pack(self, state: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
        """The tensors' bytes: the large ones, then the small ones, each padded to a multiple of eight. A bucket is lent
        until the next is asked for.
        """
        summed, at = xxhash.xxh3_64(), 0
        for tensor in _ordered(state):
            length = tensor.numel() * tensor.element_size()
            if length >= LARGE and tensor.device.type == "cpu":
                lent = _bytes(tensor).numpy()
                summed.update(lent.data)
                yield lent
                continue
            if at and (at + length > self.size or length >= LARGE):
                yield self._bucket[:at].numpy()
                at = 0
            place = self._room(at + length, tensor.is_cuda)[at : at + length]
            place.copy_(tensor.detach().contiguous().flatten().view(torch.uint8))
            summed.update(place.numpy().data)
            at += length + -length % _ALIGNED
        if at:
            yield self._bucket[:at].numpy()
        self.digest = summed.intdigest()

    def _room(self, length: int, pinned: bool) -> Tensor:
        """The bucket, with room for that much. A new one is empty: more than `size` is only asked for alone."""
        if len(self._bucket) < length:
            room = max(self.size, length) + _ALIGNED
            self._bucket = torch.zeros(room, dtype=torch.uint8, pin_memory=pinned)
        return self._bucket


@torch.no_grad()
def unpack(buckets: Iterable[np.ndarray], state: Mapping[str, Tensor]) -> int:
    """Copy what was packed of tensors with the same shapes and types into `state`. Returns the checksum of `state`."""
    waiting, summed = _ordered(state), xxhash.xxh3_64()
    for bucket in buckets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # shared memory is read-only, and is only read here
            flat = torch.from_numpy(bucket)
        at = 0
        while at < len(flat):
            tensor = waiting.pop(0)
            length = tensor.numel() * tensor.element_size()
            tensor.copy_(flat[at : at + length].view(tensor.dtype).view(tensor.shape))
            summed.update(_bytes(tensor).numpy().data)
            at += length + -length % _ALIGNED
    if waiting:
        raise ValueError(f"{len(waiting)} weights are missing")
    return summed.intdigest()


def _ordered(state: Mapping[str, Tensor]) -> list[Tensor]:
    return sorted(state.values(), key=lambda t: t.numel() * t.element_size() < LARGE)


def _bytes(tensor: Tensor) -> Tensor:
    """On the CPU; not copied where they lie there in order."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).cpu()
