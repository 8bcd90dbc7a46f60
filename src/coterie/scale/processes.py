"""Workers on torch.distributed: gloo between CPUs, nccl between GPUs; and the processes that one of them starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from coterie.errors import RecipeError, RunError
from coterie.learner import Learner
from coterie.policies.base import Policy
from coterie.rollouts import Rollouts
from coterie.sections import Scale
from coterie.workers import Alone

if TYPE_CHECKING:
    from coterie.recipe import Recipe

T = TypeVar("T")
BUCKET = 2**24
"""Numbers of gradient that travel at once."""
GRACE = 5.0
"""Seconds in which a worker that is ending may say why."""
PATIENCE = 1800.0
"""Seconds that processes wait for each other at the least."""
LOST = 75
"""Exit code of a process that ended because another did."""


class Lost(RunError):
    """Another process of the team has ended. `died`: not by an error that it raised, which would come again."""

    exit_code = LOST

    def __init__(self, message: str, *, hint: str, died: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.hint, self.died = hint, died


class Ended(NamedTuple):
    """What became of a trainer; whether it died, and did not raise an error."""

    said: str
    died: bool


def check_functions(recipe: Recipe) -> None:
    """Raise RecipeError for a reward function that other processes could not import."""
    for function in recipe.functions:
        if callable(function["fn"] if isinstance(function, Mapping) else function):
            raise RecipeError(
                "a reward function only exists in this process, and several workers are to call it",
                hint="name it by its file, file.py:name; or start your script with torchrun",
            )


class Team:
    """The trainers beside the one that leads, which started them and ends them."""

    environment: dict[str, str]
    ended: threading.Event
    waiting: float | None = None
    """Since when this process waits for the others; None where it does not."""

    def said(self) -> Ended | None:
        """What became of the first that ended by itself and was not done, None where none did."""
        raise NotImplementedError

    def end(self) -> None:
        """Let those that are done go, and stop the others."""
        raise NotImplementedError

    def watch(self) -> None:
        """End this process, if need be, when a trainer has failed: one that waits for it may wait for long."""
        failed: tuple[float, Ended] | None = None
        while not self.ended.wait(1.0):
            if failed is None and (said := self.said()) is not None:
                failed = time.monotonic(), said
            since = self.waiting
            if failed is not None and since is not None and time.monotonic() - max(failed[0], since) > 3 * GRACE:
                print(f"error: {failed[1].said}; the last checkpoint is intact", file=sys.stderr)
                os._exit(RunError.exit_code)

    def why(self) -> Ended | None:
        """What became of the first that failed by itself, None if none did within the time of grace."""
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            if (said := self.said()) is not None:
                return said
            time.sleep(0.05)
        return None


class Crew(Team):
    """The other processes of a team on this machine, started by rank 0 and ended with it."""

    def __init__(self, recipe: Recipe, size: int) -> None:
        check_functions(recipe)
        self.folder = tempfile.TemporaryDirectory(prefix="coterie-workers-")
        written = Path(self.folder.name, "recipe.yaml")
        written.write_text(recipe.to_yaml(), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1, size):
            mine = {**os.environ, **self.environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with self._said(rank).open("wb") as said:
                command = [sys.executable, "-m", "coterie.scale", str(written)]
                self.processes.append(
                    subprocess.Popen(command, env=mine, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                                     start_new_session=True)
                )  # fmt: skip

        self.ended = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def _said(self, rank: int) -> Path:
        return Path(self.folder.name, f"worker-{rank}.log")

    def said(self) -> Ended | None:
        for rank, process in enumerate(self.processes, 1):
            code = process.poll()
            if code is not None and code not in (0, LOST):
                return Ended(self._describe(rank, code), code < 0)
        return None

    def _describe(self, rank: int, code: int) -> str:
        who = f"worker {rank} of {len(self.processes) + 1}"
        if code < 0:
            return f"{who} was killed ({signal.Signals(-code).name})"
        lines = [line for line in self._said(rank).read_text(errors="replace").splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        return f"{who} failed: {said.removeprefix('error: ') or f'exit code {code}'}"

    def end(self) -> None:
        """Let those that are done go, and stop the others."""
        until = time.monotonic() + GRACE if sys.exc_info()[0] is None else 0.0
        for process in self.processes:
            try:
                process.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.ended.set()
        self.folder.cleanup()


class Processes(Alone):
    """The workers of a process group that this makes, from the variables torchrun sets or those of a crew."""

    def __init__(self, scale: Scale, crew: Team | None = None) -> None:
        self.scale, self.crew = scale, crew
        here = int(os.environ.get("LOCAL_RANK", "0"))
        gpus = torch.cuda.device_count()
        if gpus:
            torch.cuda.set_device(here % gpus)
        size = int(crew.environment["WORLD_SIZE"]) if crew is not None else int(os.environ["WORLD_SIZE"])
        each_its_own = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", size))  # nccl refuses two on one GPU
        backend = "cpu:gloo,cuda:nccl" if gpus and each_its_own else "gloo"
        self.between = time.monotonic() if "nccl" in backend else None  # it does not tell that another is gone
        tries = 4 if scale.engine == "ray" else 1  # the one that leads waits for rollout workers that are replaced
        patience = timedelta(seconds=tries * max(scale.timeout, PATIENCE))
        if crew is not None:
            address = f"tcp://{crew.environment['MASTER_ADDR']}:{crew.environment['MASTER_PORT']}"
            self._do(lambda: dist.init_process_group(backend, address, patience, rank=0, world_size=size))
        else:
            self.restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            self._do(lambda: dist.init_process_group(backend, timeout=patience, **_store_of_attempt(patience)))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def learner(self, policy: Policy) -> Learner:
        if not self.scale.shard:
            return super().learner(policy)
        from coterie.scale.sharded import Sharded

        return Sharded(policy, self, self.scale.offload)

    def most(self, count: int) -> int:
        """The largest of the processes' counts."""
        most = torch.tensor(count)
        self._do(lambda: dist.all_reduce(most, dist.ReduceOp.MAX))
        return int(most)

    def share(self, count: int) -> slice:
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def rows(self, rollouts: Rollouts) -> Tensor:
        groups = rollouts["groups"].tolist()
        tokens: dict[int, int] = {}
        for group, length in zip(groups, rollouts["lengths"].tolist(), strict=True):
            tokens[group] = tokens.get(group, 0) + length + len(rollouts.prompts[group].tokens)
        load, owner = [0] * self.size, {}
        for group in sorted(tokens, key=lambda g: (-tokens[g], g)):  # the largest first, to whom has least
            owner[group] = load.index(min(load))
            load[owner[group]] += tokens[group]
        mine = [row for row, group in enumerate(groups) if owner[group] == self.rank]
        return torch.tensor(mine, dtype=torch.long, device=rollouts["groups"].device)

    def together(self, part: T) -> list[T]:
        parts: list[Any] = [None] * self.size
        self._do(lambda: dist.all_gather_object(parts, part))
        return parts

    def sum(self, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        self._do(lambda: dist.all_reduce(total))
        return total

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        listed = list(parameters)
        if not listed:
            return
        has = self.sum(torch.tensor([p.grad is not None for p in listed], dtype=torch.float32))
        for bucket in _buckets([p for p, n in zip(listed, has.tolist(), strict=True) if n]):
            precise = torch.promote_types(bucket[0].dtype, torch.float32)  # half precision is summed in float32
            flat = torch.cat([_gradient(p).flatten().to(precise) for p in bucket])
            total = self.sum(flat).split([p.numel() for p in bucket])
            for parameter, gradient in zip(bucket, total, strict=True):
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)

    def first(self, value: Tensor) -> Tensor:
        out = value.detach().clone(memory_format=torch.contiguous_format)
        sent = out.view(torch.uint8) if out.dtype == torch.bool else out
        self._do(lambda: dist.broadcast(sent, 0))
        return out

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(float(flag))))

    def _do(self, talk: Callable[[], Any]) -> None:
        """Talk to the others. Raises Lost when one is not there any more."""
        if self.crew is not None:
            self.crew.waiting = time.monotonic()
        with self.talking(certain=True):
            talk()
        if self.crew is not None:
            self.crew.waiting = self.between

    @contextmanager
    def talking(self, certain: bool = False) -> Iterator[None]:
        """Where others are talked to, among other things unless `certain`. Raises Lost when one is not there."""
        try:
            yield
        except RuntimeError as error:  # of torch.distributed, which has no narrower class for a closed connection
            why = self.crew.why() if self.crew is not None else None
            if why is None and not certain:
                raise
            said = why.said if why else f"another worker is not there any more: {str(error).splitlines()[0]}"
            raise Lost(
                said,
                hint="the last checkpoint is intact: `coterie resume RUN`, with as many workers as you like",
                died=why is None or why.died,
            ) from error


def _store_of_attempt(patience: timedelta) -> dict[str, Any]:
    """Where processes of torchrun find each other. It keeps one place for all attempts, and in it the addresses of
    processes that are dead: so each attempt has a part of its own. On several machines their counts of restarts differ.
    """
    restarts, most = (int(os.environ.get(f"TORCHELASTIC_{n}", "0")) for n in ("RESTART_COUNT", "MAX_RESTARTS"))
    if most == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    if int(os.environ["GROUP_WORLD_SIZE"]) > 1:
        raise RecipeError(
            "torchrun --max-restarts on several machines would have processes look for those that are dead",
            hint="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun",
        )
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=patience)))
    return {"store": dist.PrefixStore(f"attempt-{restarts}", store), "rank": rank, "world_size": size}


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters of one type and device, in order, about BUCKET numbers at once."""
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > BUCKET
        if bucket and (full or (parameter.dtype, parameter.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
