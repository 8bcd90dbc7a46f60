"""Who survives off-policyness: objectives on batches that are 0 to 64 updates late, on the tiny language model.

A cell is one objective, one lateness and one seed. Every cell begins with the same warm-started weights of its seed
and takes the same number of updates; only the objective and the age of the batches differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LATE = (0, 1, 4, 16, 64)
"""Updates by which a batch is late when it is trained on."""
SEEDS = 4
UPDATES = 128
WINDOW = 16
"""Updates over which the metrics of a cell's end, and of each point of its curve, are averaged."""
BASE = (
    "task={sort: {digits: 4}}", "threads=1", "checkpoint.every=0", "log.rollouts_every=0", "evaluation.every=0",
    "evaluation.prompts=256", "evaluation.greedy=false", "draw.prompts=8", "rollout.group_size=8",
    "rollout.max_tokens=5", "optimizer.lr=1e-3",
)  # fmt: skip
WARM = (
    "model={init: {layers: 1, width: 48, heads: 4, context: 32}}", "steps=1", "optimizer.lr=1e-12",
    "warm_start.steps=200", "warm_start.check_every=5", "warm_start.stop_at=0.3",
)  # fmt: skip
"""What makes the first weights: supervised steps up to about 30 % accuracy."""


@dataclass(frozen=True)
class Objective:
    """One row of the table: a method, and what it needs to be set besides."""

    label: str
    method: str
    overrides: Sequence[str] = ()

    def missing(self) -> list[str]:
        """Methods it joins that are not there (yet)."""
        from coterie import methods

        return sorted(set(self.method.split("+")) - set(methods.slugs()))


OBJECTIVES = (
    Objective("GRPO (PPO-clip)", "grpo"),
    Objective("GRPO + TIS", "grpo+tis"),
    Objective("GRPO + KL", "grpo+kl"),
    Objective("Dr. GRPO", "dr-grpo"),
    Objective("DAPO", "dapo", ("rewards.shaping=[]",)),  # every answer takes the whole budget: no length punishment
    Objective("GSPO", "gspo"),
    Objective("CISPO", "cispo"),
    Objective("REINFORCE", "grpo", ("objective.loss=reinforce",)),
    Objective("OPMD", "opmd"),
    Objective("AsymRE", "asymre"),
    Objective("TOPR", "topr"),
    Objective("TOPR, c = 0.2", "topr", ("credit.modifiers.baseline_shift.delta=-0.2",)),
    Objective("SAPO (soft gate)", "sapo-soft"),
    Objective("BAPO", "bapo-adaptive-clip"),
    Objective("TRPA", "trpa"),
    Objective("DisCO", "disco"),
)


def run(options: Any) -> Any:
    """`python -m bench stability`: the cells that are not recorded yet, the table of all, the figure."""
    from bench.results import Findings
    from bench.stability.__main__ import play_missing
    from bench.stability.cells import Record
    from bench.stability.figure import draw
    from bench.stability.summary import rows, shown

    record = Record.load()
    play_missing([o for o in OBJECTIVES if options.wants(o.label)], options.runs_or(SEEDS, 1), record)
    found = rows(record.cells)
    draw(found)
    table = [
        {"objective": row["objective"], **{f"{n} late": shown(row["late"].get(str(n)), "accuracy") for n in LATE}}
        for row in found
    ]
    return Findings(rows=table, notes=["accuracy at the end; every cell is in bench/results/stability/cells.json"])
