"""One GRPO step against TRL's GRPOTrainer: the same model from disk, prompts, lengths, optimizer and threads.

In float32 and in bfloat16: all four sides live in processes of their own and take turns. TRL takes its batch in one
forward or in micro-batches, whichever is faster here; Coterie runs on its defaults.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.environments import SCRATCH, trl_python
from bench.results import Figure, Findings, spread
from bench.workers import TRL, Worker, ours, take_turns
from bench.workload import step_config

PHASES = ("generate", "score", "learn")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Setting:
    size: str
    prompt: int
    prompts: int
    bar: float
    runs: int

    @property
    def name(self) -> str:
        return f"{self.size} {self.prompt}:64"


SETTINGS = [
    Setting("4M", 20, 8, 2.0, 9),
    Setting("4M", 256, 8, 5.0, 5),
    Setting("4M", 1024, 8, 6.0, 3),
    Setting("100M", 256, 2, 2.5, 3),
]


def run(options: Any) -> Findings:
    found = Findings()
    found.notes += [
        "8 rollouts a prompt; 8 prompts, with the 100M model 2; all four sides of a setting take turns",
        "EOS is never sampled: Coterie's engine forbids it (and its scoring leaves it out), TRL has min_new_tokens",
        "no KL, temperature 1, one optimizer step a batch; nothing is logged or saved on either side",
        "bfloat16: the optimizer steps float32 copies of Coterie's weights; of TRL's, none where it has bf16 weights",
    ]
    for setting in SETTINGS:
        if options.wants(setting.name) and not (options.quick and setting.size == "100M"):
            _compare(setting, options, found)
    return found


def _compare(setting: Setting, options: Any, found: Findings) -> None:
    config = step_config(setting.size, setting.prompt, 64, setting.prompts, 8, options.threads)
    config |= {"scratch": str(SCRATCH / "trl"), "tokens": 8 * setting.prompts * (setting.prompt + 64)}
    runs = options.runs_or(setting.runs, 2)
    configs = {dtype: config | {"dtype": dtype} for dtype in DTYPES}
    tried = {dtype: _ways_of_trl(configs[dtype]) for dtype in DTYPES}
    with ExitStack() as stack:
        workers = []
        for dtype, mine in configs.items():
            variant = min(tried[dtype], key=lambda way: way.seconds).variant
            workers.append(stack.enter_context(ours(f"coterie {dtype}", mine)))
            workers.append(stack.enter_context(Worker(f"trl {dtype}", trl_python(), TRL, mine | variant)))
        steps = take_turns(workers, runs, warm=1)
        ready = {worker.name: worker.ready for worker in workers}
    medians = {side: statistics.median(s["seconds"] for s in answers) for side, answers in steps.items()}
    best = {side: min(medians[f"{side} {dtype}"] for dtype in DTYPES) for side in ("coterie", "trl")}
    for dtype in DTYPES:
        ratio = medians[f"trl {dtype}"] / medians[f"coterie {dtype}"]
        row: dict[str, Any] = {"setting": f"{setting.name} {dtype}"}
        for side in ("coterie", "trl"):
            row[f"{side} s"] = medians[f"{side} {dtype}"]
            phases = (statistics.median(s[phase] for s in steps[f"{side} {dtype}"]) for phase in PHASES)
            row[f"{side}'s {' + '.join(PHASES)}"] = " + ".join(f"{s:.2f}" for s in phases)
        shown = min(tried[dtype], key=lambda way: way.seconds).name
        found.rows.append({**row, "trl runs as": shown, "ratio": ratio})
        found.figures.append(Figure(f"GRPO step against TRL, {setting.name} {dtype}", ratio, setting.bar, runs))
    found.figures.append(
        Figure(f"GRPO step against TRL, {setting.name}, each side's best dtype", best["trl"] / best["coterie"],
               setting.bar, runs)
    )  # fmt: skip
    found.detail["versions"] = {"trl": ready["trl float32"]["trl"]}
    found.detail[setting.name] = {
        "seconds": {side: spread([s["seconds"] for s in answers]) for side, answers in steps.items()},
        "steps": steps, "workers": ready, "prompts": setting.prompts, "group_size": 8,
        "trl_variants_tried": {dtype: {way.name: way.seconds for way in ways} for dtype, ways in tried.items()},
    }  # fmt: skip


class Way(NamedTuple):
    """How TRL may run, and the seconds of a step so."""

    name: str
    variant: dict[str, Any]
    seconds: float


def _ways_of_trl(config: dict[str, Any]) -> list[Way]:
    """By one step each after a first one: the batch whole or cut, bfloat16 weights or autocast."""
    rows = config["prompts"] * config["group_size"]
    variants: list[dict[str, Any]] = [{"microbatch": m} for m in (rows, max(config["group_size"], rows // 8))]
    if config["dtype"] == "bfloat16":  # whole, a long batch takes twice as long as cut, in either type
        some = variants if config["tokens"] < 5000 else variants[1:]
        variants = [{**v, "autocast": cast} for v in some for cast in (False, True)]
    ways = []
    for variant in variants:
        with Worker("trl-probe", trl_python(), TRL, config | variant) as worker:
            worker.ask("step")
            ways.append(Way(_shown(variant), variant, worker.ask("step")["seconds"]))
    return ways


def _shown(variant: dict[str, Any]) -> str:
    cast = {True: ", autocast", False: ", bf16 weights", None: ""}[variant.get("autocast")]
    return f"micro-batch {variant['microbatch']}{cast}"
