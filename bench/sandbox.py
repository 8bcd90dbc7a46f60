"""Programs a second through the sandbox: short ones, a numeric one, endless ones, and HumanEval's solutions.

A program is run in each backend that works here and, to compare, as a bare subprocess of the same Python. Setups take
turns, so that a machine that slows down slows all of them. HumanEval's canonical solutions are graded as the task
`code` grades completions: a solution and its tests each in a sandbox of its own. Their file is what the environment
variable HUMANEVAL names, else shared/data/humaneval/HumanEval.jsonl.gz beside the repository, where the tests look too.
"""

from __future__ import annotations

import gzip
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bench import BenchError
from bench.environments import ROOT
from bench.results import Figure, Findings, spread

HUMANEVAL = Path(os.environ.get("HUMANEVAL", ROOT.parent / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"))
PROGRAMS = {"nothing": "pass", "numeric": "print(sum(i * i for i in range(100_000)))"}
ENDLESS = "while True: pass"
LIMIT = 1.0
"""Seconds that an endless program has."""
WORKERS = (1, 2)


def run(options: Any) -> Findings:
    found, rounds, each = Findings(), options.runs_or(5, 2), 10 if options.quick else 20
    backends = _backends()
    if not backends:
        raise BenchError("no sandbox can be made on this machine: `coterie doctor` says why")
    setups: dict[str, Callable[[str], None]] = {"bare": _bare} | {b: partial(_program, b) for b in backends}
    for name, code in PROGRAMS.items():
        for workers in WORKERS:
            if options.wants(f"{name}, {workers}"):
                _rates(found, f"{name}, {workers}", setups, code, workers, each, rounds)
    for backend in backends:
        for workers in WORKERS:
            if options.wants(f"endless, {workers}"):
                _endless(found, backend, workers)
    if HUMANEVAL.exists():
        for backend in backends:
            if options.wants("humaneval"):
                _humaneval(found, backend, WORKERS[-1])
    else:
        found.notes.append("HumanEval is not there: HUMANEVAL names its file")
    found.notes.append("CPU ms: of the processor, with everything that a program starts; medians over rounds")
    return found


def _backends() -> list[str]:
    from coterie.errors import SandboxError
    from coterie.sandbox import Sandbox

    out = []
    for backend in ("namespaces", "bubblewrap"):
        try:
            if Sandbox(backend=backend).python("pass").ok:
                out.append(backend)
        except (SandboxError, OSError) as error:
            print(f"{backend} does not work here: {error}")
    return out


def _bare(code: str) -> None:
    from coterie.sandbox.process import ENVIRONMENT, PYTHON

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.py"
        path.write_text(code)
        subprocess.run([PYTHON, "-E", "-s", str(path)], check=True, capture_output=True, env=ENVIRONMENT)


def _program(backend: Any, code: str) -> None:
    from coterie.sandbox import Sandbox

    result = Sandbox(backend=backend).python(code)
    if not result.ok:
        raise BenchError(f"{backend}: {result.outcome} {result.stderr}")


def _cpu() -> float:
    """Processor seconds of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _timed(calls: list[Callable[[], Any]], workers: int) -> tuple[float, list[Any]]:
    """Seconds until all have returned, and what they returned."""
    with ThreadPoolExecutor(workers) as pool:
        began = time.perf_counter()
        values = list(pool.map(lambda call: call(), calls))
        return time.perf_counter() - began, values


def _rates(
    found: Findings,
    name: str,
    setups: dict[str, Callable[[str], None]],
    code: str,
    workers: int,
    each: int,
    rounds: int,
) -> None:
    seconds: dict[str, list[float]] = {setup: [] for setup in setups}
    cpu: dict[str, list[float]] = {setup: [] for setup in setups}
    for setup in setups.values():
        setup(code)
    for _ in range(rounds):
        for which, setup in setups.items():
            before = _cpu()
            seconds[which].append(_timed([partial(setup, code)] * each, workers)[0] / each)
            cpu[which].append((_cpu() - before) / each)
    for which in setups:
        median, used = statistics.median(seconds[which]), statistics.median(cpu[which])
        found.rows.append({"programs": f"{name}, {which}", "a second": 1 / median, "CPU ms": 1e3 * used})
        found.detail[f"{name}, {which}"] = {"seconds a program": spread(seconds[which]), "CPU": spread(cpu[which])}
        if workers == 1 and code == PROGRAMS["nothing"] and which != "bare":
            for what, own in (("ms", seconds), ("CPU ms", cpu)):
                more = statistics.median(1e3 * (a - b) for a, b in zip(own[which], own["bare"], strict=True))
                found.figures.append(Figure(f"{what} of a start above a bare subprocess, {which}", more, None, rounds))
    print(f"{name} done", flush=True)


def _endless(found: Findings, backend: Any, workers: int) -> None:
    from coterie.sandbox import Limits, Sandbox

    box, count = Sandbox(Limits(seconds=LIMIT), backend=backend), 2 * workers
    seconds, results = _timed([partial(box.python, ENDLESS)] * count, workers)
    if {r.outcome for r in results} != {"timeout"}:
        raise BenchError(f"{backend}: endless programs end with {', '.join(r.outcome for r in results)}")
    name = f"endless, {workers}, {backend}"
    found.rows.append({"programs": name, "a second": count / seconds, "CPU ms": ""})
    found.detail[name] = {"seconds a program": spread([r.seconds for r in results])}
    late = max(r.seconds for r in results) - LIMIT
    found.figures.append(Figure(f"s past the limit of {LIMIT:g} s, most, {name}", late, 2.0, count, at_most=True))


def _humaneval(found: Findings, backend: Any, workers: int) -> None:
    from coterie.tasks import code

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(
            gzip.decompress(HUMANEVAL.read_bytes()) if HUMANEVAL.suffix == ".gz" else HUMANEVAL.read_bytes()
        )
        task = code(source=str(path), held_out=0.0, backend=backend)
    rows, verify = task.train, task.verify
    assert verify is not None
    seconds, passed = _timed([partial(verify, row["solution"], row) for row in rows], workers)
    name = f"humaneval, {workers}, {backend}"
    found.rows.append({"programs": name, "a second": len(rows) / seconds, "CPU ms": ""})
    found.detail[name] = {"solutions": len(rows), "passed": sum(passed), "seconds": seconds}
    found.figures.append(Figure(f"share of solutions that pass, {name}", sum(passed) / len(rows), 1.0, 1))
    print(f"{name}: {sum(passed)} of {len(rows)} in {seconds:.0f} s", flush=True)
