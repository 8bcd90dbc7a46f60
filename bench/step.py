"""One GRPO step against TRL's GRPOTrainer: the same model from disk, prompts, lengths, optimizer and threads.

Both sides live in processes of their own and take turns. TRL takes its batch in one forward or in micro-batches,
whichever is faster here; Coterie runs on its defaults.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from bench.environments import SCRATCH, trl_python
from bench.results import Figure, Findings, spread
from bench.workers import TRL, Worker, ours, take_turns
from bench.workload import step_config

PHASES = ("generate", "score", "learn")


@dataclass(frozen=True)
class Setting:
    size: str
    prompt: int
    prompts: int
    bar: float | None
    runs: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.size} {self.prompt}:64 {self.dtype}"


SETTINGS = [
    Setting("4M", 20, 8, 2.0, 5),
    Setting("4M", 256, 8, 5.0, 5),
    Setting("4M", 1024, 8, 6.0, 3),
    Setting("100M", 256, 2, 2.5, 3),
    Setting("4M", 20, 8, None, 5, "bfloat16"),
    Setting("4M", 256, 8, None, 5, "bfloat16"),
]


def run(options: Any) -> Findings:
    found = Findings()
    found.notes += [
        "8 rollouts a prompt; 8 prompts, with the 100M model 2; float32 on both sides unless it says bfloat16",
        "EOS is never sampled: Coterie's engine forbids it (and its scoring leaves it out), TRL has min_new_tokens",
        "no KL, temperature 1, one optimizer step a batch; nothing is logged or saved on either side",
    ]
    for setting in SETTINGS:
        if options.wants(setting.name) and not (options.quick and setting.size == "100M"):
            _compare(setting, options, found)
    return found


def _compare(setting: Setting, options: Any, found: Findings) -> None:
    config = step_config(setting.size, setting.prompt, 64, setting.prompts, 8, options.threads, dtype=setting.dtype)
    config["scratch"] = str(SCRATCH / "trl")
    runs = options.runs_or(setting.runs, 2)
    variant, tried = _best_of_trl(config)
    with ours("coterie", config) as left, Worker("trl", trl_python(), TRL, config | variant) as right:
        steps = take_turns([left, right], runs, warm=1)
        ready = {worker.name: worker.ready for worker in (left, right)}
    medians = {side: statistics.median(s["seconds"] for s in answers) for side, answers in steps.items()}
    ratio = medians["trl"] / medians["coterie"]
    row: dict[str, Any] = {"setting": setting.name}
    for side in ("coterie", "trl"):
        row[f"{side} s"] = medians[side]
        for phase in PHASES:
            row[f"{side} {phase}"] = statistics.median(s[phase] for s in steps[side])
    found.rows.append({**row, "trl runs as": _shown(variant), "ratio": ratio})
    found.detail["versions"] = {"trl": ready["trl"]["trl"]}
    found.detail[setting.name] = {
        "ratio_by_pair": [t["seconds"] / c["seconds"] for c, t in zip(steps["coterie"], steps["trl"], strict=True)],
        "seconds": {side: spread([s["seconds"] for s in answers]) for side, answers in steps.items()},
        "steps": steps, "workers": ready, "trl_variants_tried": tried, "prompts": setting.prompts, "group_size": 8,
    }  # fmt: skip
    found.figures.append(Figure(f"GRPO step against TRL, {setting.name}", ratio, setting.bar, runs))


def _best_of_trl(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The way TRL is fastest here, by one step each after a first one: batch whole or cut, bf16 weights or autocast."""
    rows = config["prompts"] * config["group_size"]
    variants = [{"microbatch": m} for m in (rows, max(config["group_size"], rows // 8))]
    if config["dtype"] == "bfloat16":
        variants = [{**v, "autocast": cast} for v in variants[1:] for cast in (False, True)]
    seconds: dict[str, float] = {}
    for variant in variants:
        with Worker("trl-probe", trl_python(), TRL, config | variant) as worker:
            worker.ask("step")
            seconds[_shown(variant)] = worker.ask("step")["seconds"]
    return min(variants, key=lambda v: seconds[_shown(v)]), seconds


def _shown(variant: dict[str, Any]) -> str:
    cast = {True: ", autocast", False: ", bf16 weights", None: ""}[variant.get("autocast")]
    return f"micro-batch {variant['microbatch']}{cast}"
