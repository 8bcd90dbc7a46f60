"""Weights straight from the trainer to a worker, by send and receive in a process group of the two.

Each worker has a group of its own with the trainer. So one takes the weights when it is free, whatever the others do,
and one that dies or hangs spoils no group but its own. A broadcast would need all workers at the same moment, and new
groups for all of them whenever one is gone.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.scale.weights import Packer, cut, flattened, is_large, size_of, sum_on, unpack

PATIENCE = 120.0
"""Seconds in which the two must have met, and in which a bucket must have passed."""
_LOOK = 0.01
"""Seconds between two looks at whether the other is there."""
_SHORT = 0.0005
"""Seconds between two looks at whether a GPU is done."""
_environment = threading.Lock()

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, type and shape of each weight, in their order."""


class Where(NamedTuple):
    """Where a process is: its machine, and the GPU that has its weights, None where they are in main memory."""

    node: str
    gpu: str | None


class Place(NamedTuple):
    """Where a pair meets: at the trainer's store, under a number of their own."""

    address: str
    port: int
    number: int
    backend: str
    patience: float


class NotArrived(RuntimeError):
    """Weights are other than they were sent, or of another version."""


class Snapshot:
    """The weights as they were, for the trainer goes on. They lie where the trainer's do."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self._reading, self._lock = 0, threading.Lock()

    @torch.no_grad()
    def take(self, state: Mapping[str, Tensor]) -> None:
        """Copy these, into the memory of those before where they have the same shapes."""
        kept = {}
        for name, tensor in state.items():
            old = self.state.get(name)
            if old is None or (old.shape, old.dtype, old.device) != (tensor.shape, tensor.dtype, tensor.device):
                old = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            kept[name] = old.copy_(tensor)
        self.state = kept
        for device in {t.device for t in kept.values() if t.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # other threads read them

    @property
    def read(self) -> bool:
        """Whether a thread is sending it."""
        return self._reading > 0

    def reads(self, more: int) -> None:
        with self._lock:
            self._reading += more


class Pair:
    """A process group of the trainer, which sends, and a worker, which receives. After an error it is of no use any
    more, and what has been received is not to be used. `address` is this process's own, `device` where buckets lie;
    when `ended` is set, waiting for the worker, or for a GPU, is over.
    """

    def __init__(self, place: Place, rank: int, address: str, device: torch.device, ended: threading.Event) -> None:
        self.place, self.device, self._ended = place, device, ended
        self.patience = timedelta(seconds=place.patience)
        store = dist.TCPStore(place.address, place.port, timeout=self.patience, wait_for_workers=False)
        self._store = dist.PrefixStore(f"pair-{place.number}", store)
        if rank == 1:
            self._store.set("here", "1")
        until = time.monotonic() + place.patience
        while not self._store.check(["here"]):
            if ended.wait(_LOOK) or time.monotonic() > until:
                raise RuntimeError("the worker did not come to take the weights")
        self.group = (_nccl if place.backend == "nccl" else _gloo)(self._store, rank, self.patience, address)
        self._bucket = torch.empty(0, dtype=torch.uint8, device=device)

    def send(self, number: int, packer: Packer, state: Mapping[str, Tensor]) -> None:
        """Send the weights, then their number and checksum. Raises RuntimeError where they do not go through."""
        for flat in packer.flat(state):
            self._wait(self.group.send([flat], 1, 0))
        last = torch.tensor([number, _signed(packer.digest)], device=self.device)
        self._wait(self.group.send([last], 1, 0))

    def receive(self, number: int, state: Mapping[str, Tensor]) -> None:
        """Receive the weights of this number into `state`, in place, and compare the checksum of what is there then.
        Raises RuntimeError where they do not arrive as they were sent.
        """
        digest = unpack(self._arriving(state), state, sum_on(self.device))
        last = torch.empty(2, dtype=torch.int64, device=self.device)
        self._wait(self.group.recv([last], 0, 0))
        if last.tolist() != [number, _signed(digest)]:
            raise NotArrived("they did not arrive as they were sent")

    def _arriving(self, state: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The buckets as they come: that of a large weight is the weight itself."""
        for group in cut(state):
            size, first = size_of(group), group[0]
            if len(group) == 1 and is_large(first) and first.is_contiguous() and first.device.type == self.device.type:
                flat = flattened(first)
            else:
                if len(self._bucket) < size:
                    self._bucket = torch.empty(size, dtype=torch.uint8, device=self.device)
                flat = self._bucket[:size]
            self._wait(self.group.recv([flat], 0, 0))
            yield flat

    def _wait(self, work: Any) -> None:
        if self.device.type == "cpu":
            work.wait(self.patience)
            return
        until = time.monotonic() + self.place.patience
        while not work.is_completed():  # else a GPU would wait, and this process go on
            if self._ended.is_set() or time.monotonic() > until:
                raise RuntimeError(f"a bucket of weights did not pass in {self.place.patience:g} s")
            time.sleep(_SHORT)
        work.wait()

    def close(self) -> None:
        """Leave the group, so that the other end knows."""
        if self.place.backend == "nccl":
            self.group.abort()
        del self.group


class Line:
    """The trainer's end of a pair, with a thread that sends while the trainer and its other threads go on."""

    def __init__(self, place: Place, device: torch.device, board: Switchboard) -> None:
        self.place, self.device = place, device
        self._board = board  # the two can only meet as long as it is there
        self.error: str | None = None
        self._ended, self._packer = threading.Event(), Packer(device=device)
        self._pair: Pair | None = None
        self._thread = ThreadPoolExecutor(1, "weights")

    def send(self, number: int, snapshot: Snapshot) -> None:
        """Begin to send. What goes wrong is in `error`, and known to the worker."""
        snapshot.reads(1)
        self._thread.submit(self._send, number, snapshot)

    def _send(self, number: int, snapshot: Snapshot) -> None:
        try:
            pair = self._pair
            if pair is None:
                self._pair = pair = Pair(self.place, 0, self.place.address, self.device, self._ended)
            if self._ended.is_set():
                raise RuntimeError("the line was closed")
            pair.send(number, self._packer, snapshot.state)
        except RuntimeError as error:  # of torch.distributed, which has no narrower class for a closed connection
            self.error = reason(error)
            self._leave()
        finally:
            snapshot.reads(-1)

    def close(self) -> None:
        """Stop sending. A bucket that is under way by gloo first fails, when the worker is gone or patience is over."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.submit(self._leave)
            self._thread.shutdown(wait=False)

    def _leave(self) -> None:
        pair, self._pair = self._pair, None
        if pair is not None:
            pair.close()


class Switchboard:
    """Where the lines of one trainer begin: a store on its machine, at a port that is free."""

    def __init__(self, address: str) -> None:
        self.address, self._numbers = address, 0
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)

    def line(self, backend: str, device: torch.device) -> Line:
        """A new one. `device` is where its buckets lie."""
        self._numbers += 1
        return Line(Place(self.address, self._store.port, self._numbers, backend, PATIENCE), device, self)


def layout(state: Mapping[str, Tensor]) -> Layout:
    return tuple((name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in state.items())


def difference(sent: Layout, here: Layout) -> str | None:
    """Where the weights of two processes differ in name, type, shape or order. None where they do not."""
    if len(sent) != len(here):
        return f"the trainer sends {len(sent)} weights, and there are {len(here)} here"
    for theirs, mine in zip(sent, here, strict=True):
        if theirs != mine:
            described = [f"{name} ({dtype} {list(shape)})" for name, dtype, shape in (theirs, mine)]
            return f"the trainer sends {described[0]}, and here is {described[1]}"
    return None


def reason(error: Exception) -> str:
    """What an error of torch.distributed says, without the place in its source and advice."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).partition(". ")[0]


def gpu_of(device: torch.device) -> str | None:
    """What tells a GPU from all others."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def _gloo(store: Any, rank: int, patience: timedelta, address: str) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = patience
    return dist.ProcessGroupGloo(store, rank, 2, options)


def _nccl(store: Any, rank: int, patience: timedelta, address: str) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = 10 * patience  # `Pair` watches the time itself
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    with _environment:  # it is read when the group is made: an error of this group must not end the process
        before = os.environ.get(name)
        os.environ[name] = "0"
        try:
            return dist.ProcessGroupNCCL(store, rank, 2, options)
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
