"""The policy's trainable weights as flat buckets of bytes, and back into the weights of another, in place.

Memory that a process touches for the first time costs several times the copy into it. So small weights pass through one
bucket that is used again and again, and a large one that is where its bucket would be is lent out as it lies.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from coterie.rollout.engines.sampling import GAMMA, mix

BUCKET = 2**26
"""Bytes of small weights that travel at once."""
LARGE = 2**25
"""Bytes of a weight that travels alone."""
_ALIGNED = 8
_PIECE = 2**24
"""Bytes that `DeviceSum` mixes at once."""
_CPU = torch.device("cpu")


class Sum(Protocol):
    """A checksum of bytes, in the order in which they are given."""

    def update(self, flat: Tensor) -> None: ...

    def intdigest(self) -> int: ...


class HostSum:
    """xxh3, of 64 bits, by the CPU."""

    def __init__(self) -> None:
        self._sum = xxhash.xxh3_64()

    def update(self, flat: Tensor) -> None:
        self._sum.update(flat.cpu().numpy().data)

    def intdigest(self) -> int:
        return self._sum.intdigest()


class DeviceSum:
    """The sum of all words of 64 bits, each mixed with its place first, where the bytes are. One word that differs is
    always noticed, for the mixing is one to one.
    """

    def __init__(self) -> None:
        self._total: Tensor | int = 0
        self._words = 0

    def update(self, flat: Tensor) -> None:
        for piece in flat.split(_PIECE):
            padded = torch.zeros(_padded(len(piece)), dtype=torch.uint8, device=flat.device)
            padded[: len(piece)] = piece
            words = padded.view(torch.int64)
            place = torch.arange(self._words, self._words + len(words), device=flat.device)
            self._total = self._total + mix(words + place * GAMMA).sum()
            self._words += len(words)

    def intdigest(self) -> int:
        return int(self._total) % 2**64


def sum_on(device: torch.device) -> Sum:
    """A checksum to be taken there."""
    return HostSum() if device.type == "cpu" else DeviceSum()


class Packer:
    """Packs weights into buckets on `device`. Once all are packed, `digest` is their checksum, taken there."""

    def __init__(self, size: int | None = None, device: torch.device = _CPU) -> None:
        self.size, self.device, self.digest = size or BUCKET, device, 0
        self._bucket = torch.empty(0, dtype=torch.uint8)

    def pack(self, state: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
        """What `flat` gives, of a packer on the CPU, as arrays."""
        for flat in self.flat(state):
            yield flat.numpy()

    def flat(self, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The tensors' bytes, cut as `cut` says. A bucket is lent until the next is asked for."""
        summed = sum_on(self.device)
        for group in cut(state, self.size):
            if len(group) == 1 and is_large(group[0]) and group[0].device.type == self.device.type:
                lent = flattened(group[0])
                summed.update(lent)
                yield lent
                continue
            size, at = size_of(group), 0
            flat = self._room(size, group[0].is_cuda)[:size]
            for tensor in group:
                place = flat[at : at + _length(tensor)]
                place.copy_(flattened(tensor))
                summed.update(place)
                at += _padded(_length(tensor))
            yield flat
        self.digest = summed.intdigest()

    def _room(self, length: int, from_gpu: bool) -> Tensor:
        """The bucket, with room for that much. A new one is empty: more than `size` is only asked for alone."""
        if len(self._bucket) < length:
            pinned = from_gpu and self.device.type == "cpu"
            room = _padded(max(self.size, length))
            self._bucket = torch.zeros(room, dtype=torch.uint8, device=self.device, pin_memory=pinned)
        return self._bucket


@torch.no_grad()
def unpack(buckets: Iterable[np.ndarray | Tensor], state: Mapping[str, Tensor], summed: Sum | None = None) -> int:
    """Copy what was packed of tensors with the same shapes and types into `state`. Returns the checksum of `state`."""
    waiting, summed = _ordered(state), summed or HostSum()
    for bucket in buckets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # shared memory is read-only, and is only read here
            flat = torch.as_tensor(bucket)
        at = 0
        while at < len(flat):
            tensor = waiting.pop(0)
            place = flat[at : at + _length(tensor)]
            if place.data_ptr() == tensor.data_ptr():  # it came straight into the weight
                torch.autograd.graph.increment_version(tensor)
            else:
                tensor.copy_(place.view(tensor.dtype).view(tensor.shape))
            summed.update(flattened(tensor))
            at += _padded(_length(tensor))
    if waiting:
        raise ValueError(f"{len(waiting)} weights are missing")
    return summed.intdigest()


def cut(state: Mapping[str, Tensor], size: int | None = None) -> Iterator[list[Tensor]]:
    """The weights that travel in one bucket: each large one alone, then small ones up to `size` bytes. Whoever has
    weights of the same shapes and types in the same order cuts them in the same way.
    """
    group: list[Tensor] = []
    for tensor in _ordered(state):
        if group and (is_large(tensor) or is_large(group[0]) or size_of([*group, tensor]) > (size or BUCKET)):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def size_of(group: list[Tensor]) -> int:
    """Bytes of a bucket: each weight begins at a multiple of eight."""
    return sum(_padded(_length(t)) for t in group[:-1]) + _length(group[-1])


def is_large(tensor: Tensor) -> bool:
    return _length(tensor) >= LARGE


def flattened(tensor: Tensor) -> Tensor:
    """Its bytes; not copied where they lie in order."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _ordered(state: Mapping[str, Tensor]) -> list[Tensor]:
    return sorted((t for t in state.values() if t.numel()), key=lambda t: not is_large(t))


def _length(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _padded(length: int) -> int:
    return length + -length % _ALIGNED
