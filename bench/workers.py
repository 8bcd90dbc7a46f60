"""Worker processes that are each asked for one step at a time, so that two trainers can take turns on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import BenchError
from bench.environments import ROOT, SCRATCH

OURS = ROOT / "bench" / "ours_step.py"
TRL = ROOT / "bench" / "peers" / "trl_step.py"


class Worker:
    """A process that holds a trainer and waits. `ready` is what it said about itself once it had loaded."""

    def __init__(
        self,
        name: str,
        python: str | Path,
        script: Path,
        config: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._log = name, SCRATCH / f"{name}.log"
        SCRATCH.mkdir(parents=True, exist_ok=True)
        threads = str(config["threads"])
        quiet = {
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
        }
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps(config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log.open("w"), text=True,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **(environment or {})},
        )  # fmt: skip
        self.ready = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: reading the answer says so
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise BenchError(f"{self.name} ended (exit code {self._process.wait()}):\n{tail}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def ours(name: str, config: Mapping[str, Any]) -> Worker:
    return Worker(name, sys.executable, OURS, config)


def take_turns(workers: Sequence[Worker], runs: int, warm: int) -> dict[str, list[dict[str, Any]]]:
    """`warm` unrecorded steps of each worker, then `runs` rounds A B A B …: the answers to "step", by worker."""
    for worker in workers:
        for _ in range(warm):
            worker.ask("step")
    out: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    for _ in range(runs):
        for worker in workers:
            out[worker.name].append(worker.ask("step"))
    return out
