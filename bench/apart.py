"""A main agent and two sub-agents in three runs that meet in a folder, against one process that trains all of them.

The recipe is `delegation`, which ships with the package, the same for all. With staleness 0 the runs take turns as one
process does, and end with its weights; with staleness 1 the main agent plays on while the others learn.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import BenchError
from bench.environments import ROOT
from bench.results import Figure, Findings

AGENTS = ("main", "left", "right")
SETUPS = {"one process": None, "apart, staleness 0": 0, "apart, staleness 1": 1}
RISE = 0.2
"""The rise of the main agent's held-out success that a run of 100 steps must show."""


def run(options: Any) -> Findings:
    found, kept = Findings(), {}
    with tempfile.TemporaryDirectory() as name:
        for setup, staleness in SETUPS.items():
            folder = Path(name) / setup.replace(" ", "-").replace(",", "")
            made = kept[setup] = _train(folder, staleness, options)
            found.rows.append({
                "runs": setup, "before": _shown(made["curve"][0]), "after": _shown(made["curve"][-1]),
                "steps": made["steps"], "CPU s": " / ".join(f"{s:.0f}" for s in made["cpu_seconds"].values()),
                "steps/s": made["steps_per_second"], "versions late": made["versions_late"],
            })  # fmt: skip
            found.figures.append(Figure(f"rise of the main agent's held-out success, {setup}",
                                        made["curve"][-1]["main"] - made["curve"][0]["main"],
                                        None if options.quick else RISE, 1))  # fmt: skip
        same = [_same(*(_weights(Path(name), setup, agent) for setup in list(SETUPS)[:2])) for agent in AGENTS]
    found.figures.append(Figure("agents whose weights are bit for bit those of one process, staleness 0",
                                float(sum(same)), float(len(AGENTS)), 1))  # fmt: skip
    found.detail = kept
    found.notes.append("before, after: held-out success of main, left and right, sampled at temperature 1; seed 0")
    found.notes.append("CPU s: of each run; imports, warm start and evaluations included")
    found.notes.append(
        "steps/s: of the run that plays, evaluations and waiting included; other work on the machine counts"
    )
    found.notes.append("versions late: mean over steps, of the run that plays")
    return found


def _train(folder: Path, staleness: int | None, options: Any) -> dict[str, Any]:
    """One run of all agents, or one of each, side by side."""
    from coterie.cli.demo import RECIPES

    common = ["train", str(RECIPES / "delegation.yaml"), "log.rollouts_every=0", "-q"]
    if options.quick:
        common.append("steps=40")
    if staleness is None:
        runs = {"main": [*common]}
    else:
        meeting = [f"apart.path={folder / 'meeting'}", f"apart.staleness={staleness}"]
        runs = {agent: [*common, *meeting, f"apart.train=[{agent}]"] for agent in AGENTS}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    began = time.perf_counter()
    processes = {
        agent: subprocess.Popen([sys.executable, "-m", "coterie", *words, "-o", str(folder / agent)], env=environment)
        for agent, words in runs.items()
    }
    cpu = _wait(processes)
    rows = [json.loads(line) for line in (folder / "main" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    after = rows[1:]
    seconds = sum(row["time/step"] for row in after)
    evaluated = [row for row in rows if "agent/main/eval/accuracy" in row]
    return {
        "curve": [{"step": r["step"]} | {a: r[f"agent/{a}/eval/accuracy"] for a in AGENTS} for r in evaluated],
        "steps": len(after), "steps_per_second": len(after) / seconds, "seconds in all": time.perf_counter() - began,
        "versions_late": sum(row.get("apart/versions_late", 0.0) for row in after) / len(after),
        "waited_share": sum(row.get("apart/waited", 0.0) for row in after) / seconds, "cpu_seconds": cpu,
    }  # fmt: skip


def _wait(processes: Mapping[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """Until all have ended; the processor's seconds of each."""
    cpu: dict[str, float] = {}
    while len(cpu) < len(processes):
        for agent in [name for name in processes if name not in cpu]:
            before = _cpu_of_children()
            code = processes[agent].poll()
            if code is not None:
                cpu[agent] = _cpu_of_children() - before
            if code:  # the others would wait for it
                for process in processes.values():
                    process.kill()
                raise BenchError(f"the run of {agent} failed")
        time.sleep(0.2)
    return {agent: cpu[agent] for agent in processes}


def _cpu_of_children() -> float:
    """Seconds of the processor, of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _weights(folder: Path, setup: str, agent: str) -> Path:
    """The last weights of an agent, from the run that trained it."""
    runs = folder / setup.replace(" ", "-").replace(",", "")
    run = runs / ("main" if setup == "one process" else agent)
    return sorted((run / "checkpoints").glob("step-*"))[-1] / "policies" / agent / "policy" / "model.safetensors"


def _same(mine: Path, theirs: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    a, b = load_file(mine), load_file(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _shown(success: dict[str, float]) -> str:
    return " / ".join(f"{100 * success[agent]:.0f}" for agent in AGENTS) + " %"
