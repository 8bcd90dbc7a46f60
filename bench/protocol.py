"""How a worker process talks with the bench: JSON lines, a command in and an answer out. Standard library only."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


class Channel:
    """The worker's end. Whatever else prints goes to standard error, so that the answers stay clean."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def reply(self, **values: Any) -> None:
        print(json.dumps(values), file=self._answers, flush=True)

    def wait(self) -> str:
        """The next command: "step" or "eval". Leaves the process when the bench closes its end."""
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        return line.strip()


def read_rows(path: str) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def columns(rows: list[dict[str, Any]], samples: int) -> dict[str, list[Any]]:
    """What reward functions take beside completions: each column of the rows but the prompt, `samples` times each."""
    return {key: [row[key] for row in rows for _ in range(samples)] for key in rows[0] if key != "prompt"}


def peak_mib() -> float:
    """The most memory this process has held: since `forget_peak` on Linux, elsewhere ever."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**10
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak() -> None:
    """Begin measuring anew: loading a model may take more than using it."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass
