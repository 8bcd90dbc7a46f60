"""The credit stage (shaping, filters, baseline, modifiers, selection) of every method: 1024 rollouts, 2048 decisions.

It is held against the forward and backward of a 4M-parameter Qwen3-style model over the same decisions. That would take
many minutes, so it is measured on few tokens and scaled linearly: attention grows faster than linearly, and generation
and the optimizer are left out, so that a real step is longer and the share of the credit stage smaller than shown.
"""

from __future__ import annotations

import statistics
import time
import typing
import warnings
from types import SimpleNamespace
from typing import Any

from bench.results import Figure, Findings, spread
from bench.workload import model_folder

B, T, GROUP, TURNS = 1024, 2048, 8, 8
TYPICAL = ("grpo", "dapo", "rloo", "reinforce++", "mc-grpo", "gdpo", "gaussian-grpo", "ace", "gtpo", "tempo")
"""Held against the bar one by one, those of them that are there; of the others, the slowest is."""
BAR = 0.01
SHAPE = {"group": 8, "prompt": 64, "completion": 448}
"""What the model's forward and backward are measured on: 8 rollouts of 512 tokens."""
PATIENCE = 20.0
"""Seconds of one pass after which a method is not repeated."""


def run(options: Any) -> Findings:
    import torch

    from coterie import methods

    torch.set_num_threads(options.threads)
    found = Findings()
    runs = options.runs_or(5, 3)
    per_token = _model_seconds_per_token(options.threads, 3)
    step = per_token * B * T
    names = [s for s in methods.slugs() if (s in TYPICAL or not options.quick) and options.wants(s)]
    shares: dict[str, float] = {}
    for slug in names:
        seconds, parts, refused = _credit_seconds(slug, runs)
        if refused:
            found.notes.append(f"{slug}: not measured, {refused}")
            continue
        shares[slug] = statistics.median(seconds) / step
        slowest = max(parts, key=lambda name: parts[name], default="")
        found.rows.append(
            {"method": slug, "ms": 1e3 * statistics.median(seconds), "share of a step": shares[slug],
             "slowest piece": slowest, "its ms": 1e3 * parts.get(slowest, 0.0)}
        )  # fmt: skip
        found.detail[slug] = {"seconds": spread(seconds), "pieces": parts}
    for slug in shares:
        if slug in TYPICAL:
            found.figures.append(Figure(f"share of the credit stage in a step, {slug}", shares[slug], BAR, runs,
                                        at_most=True))  # fmt: skip
    if others := {s: share for s, share in shares.items() if s not in TYPICAL}:
        worst = max(others, key=lambda s: others[s])
        found.figures.append(Figure(f"share of the credit stage in a step, the slowest of {len(others)} other methods "
                                    f"({worst})", others[worst], BAR, runs, at_most=True))  # fmt: skip
    if found.rows:
        most = max(row["ms"] for row in found.rows)
        found.notes.append(f"the slowest takes {most:.0f} ms: under 1 % of any step of {most / 10:.1f} s or more")
    found.detail["model"] = {"seconds_per_token": per_token, "seconds_of_a_step": step, "measured_on": SHAPE}
    found.notes.append(
        f"{B} rollouts of up to {T} decisions, groups of {GROUP}, float32. The step: {step:.0f} s, from "
        f"{1e6 * per_token:.1f} us a token of a 4M-parameter model's forward and backward on "
        f"{SHAPE['group']} x {SHAPE['prompt'] + SHAPE['completion']} tokens, scaled linearly (an underestimate)"
    )
    return found


def _model_seconds_per_token(threads: int, runs: int) -> float:
    """Median of forward and backward over a group without a shared prefix, a token of completion."""
    import torch

    from bench.prefix import _rollouts
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec

    policy = CausalLM.load(ModelSpec(name=str(model_folder("4M", 2048))))
    rollouts = _rollouts(SHAPE["prompt"], SHAPE["completion"], SHAPE["group"])
    seconds = []
    for number in range(runs + 1):
        policy.model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        policy.score(rollouts)["logp"].mean().backward()
        if number:
            seconds.append(time.perf_counter() - began)
    assert torch.get_num_threads() == threads
    return statistics.median(seconds) / (SHAPE["group"] * SHAPE["completion"])


def _credit_seconds(slug: str, runs: int) -> tuple[list[float], dict[str, float], str | None]:
    """Seconds of each pass through the stages, seconds of each piece in the last, and why it cannot run here."""
    from coterie.clock import Clock
    from coterie.collect import _apply_filters, shape
    from coterie.errors import CoterieError
    from coterie.history import History
    from coterie.loop import credit, select
    from coterie.metrics import Collector, collect
    from coterie.pieces import BoundPiece
    from coterie.recipe import resolve
    from coterie.run import Run

    parts: dict[str, float] = {}
    original = BoundPiece.__call__

    def timed(self: Any, table: Any, step: int = 0) -> Any:
        began = time.perf_counter()
        out = original(self, table, step)
        parts[self.name] = parts.get(self.name, 0.0) + time.perf_counter() - began
        return out

    recipe = resolve(method=slug, values={"task": "sort", "rollout.max_tokens": T, "rollout.group_size": GROUP})
    run: Any = SimpleNamespace(recipe=recipe, settings=recipe.settings, history=History(), budget=T)
    run.reward_weights = dict.fromkeys(_table(recipe)["components"], 1.0)
    run.table = lambda rollouts, step: Run.table(run, rollouts, step)
    seconds: list[float] = []
    BoundPiece.__call__ = timed  # type: ignore[method-assign]
    try:
        for number in range(runs + 1):
            batch, clock = _table(recipe), Clock()
            parts.clear()
            began = time.perf_counter()
            with collect(Collector()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                batch = shape(run, batch, 0, clock)
                kept = _apply_filters(run, batch, 0, clock) if recipe.chain["selection.filters"] else batch
                if kept is None:
                    return [], {}, "its filter keeps none of these rollouts"
                select(run, credit(run, kept, 0, clock), 0, clock)
            took = time.perf_counter() - began
            if number or took > PATIENCE:  # the first is a warm-up
                seconds.append(took)
            if took > PATIENCE:
                break
    except CoterieError as error:
        return [], {}, str(error)
    finally:
        BoundPiece.__call__ = original  # type: ignore[method-assign]
    return seconds, dict(parts), None


def _names(bound: Any) -> list[str]:
    """Words among a piece's settings that are no choice of its own: names of reward components."""

    def words(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [w for pair in value.items() for part in pair for w in words(part)]
        if isinstance(value, list | tuple):
            return [w for part in value for w in words(part)]
        return [value] if isinstance(value, str) else []

    settings = bound.piece.settings
    free = (n for n in bound.settings if typing.get_origin(settings[n].annotation) is not typing.Literal)
    return [word for n in free for word in words(bound.settings[n])]


def _table(recipe: Any) -> Any:
    """Random rollouts with the columns that the recipe reads; nine in ten groups have different rewards."""
    import torch

    from coterie.columns import COLUMNS
    from coterie.rollouts import Prompt, Rollouts

    draw = torch.Generator().manual_seed(0)

    def uniform(*size: int) -> Any:
        return torch.rand(size, generator=draw)

    def whole(high: int, *size: int) -> Any:
        return torch.randint(high, size, generator=draw)

    groups = torch.arange(B) // GROUP
    lengths = whole(T, B) + 1
    mask = torch.arange(T) < lengths.unsqueeze(-1)
    rewards = (uniform(B) < uniform(B // GROUP)[groups]).float()
    named = {name for _, b in recipe.all_bound() for name in _names(b)}
    made: dict[str, Any] = {
        "groups": groups, "lengths": lengths, "mask": mask, "rewards": rewards, "correct": rewards > 0.5,
        "components": {"correct": rewards, "format": uniform(B), **{n: whole(4, B).float() for n in sorted(named)}},
        "truncated": lengths == T, "tokens": whole(64, B, T), "prompt_index": groups.clone(),
        "parent": torch.arange(B), "branch": torch.zeros(B, dtype=torch.int64), "turn": whole(TURNS, B, T).sort(-1)[0],
        "weights": torch.ones(B),
    }  # fmt: skip
    sizes = {"B": B, "T": T, "U": TURNS}
    scalars = {name for name, c in COLUMNS.items() if c.shapes == ("scalar",)}
    needed = {"groups", "rewards", "components", "correct", "mask", "lengths", "truncated", "tokens", "logp_old"}
    needed |= {c for _, b in recipe.all_bound() for c in (*b.piece.required, *b.piece.optional)}
    for name in sorted(needed - {"advantages", "ratio", "token_rewards"} - scalars):
        if name not in made:
            size = [sizes[axis] for axis in COLUMNS[name].shapes[0].split()]
            kind = COLUMNS[name].dtype
            made[name] = whole(8, *size) if kind == "int" else -uniform(*size) - 0.01
            made[name] = made[name] < -0.51 if kind == "bool" else made[name]
    made |= {name: -made[name] for name in ("entropy", "entropy_old") if name in made}
    columns = {name: value for name, value in made.items() if name in needed or name == "weights"}
    return Rollouts([Prompt((1,), {}, i) for i in range(B // GROUP)], columns)
