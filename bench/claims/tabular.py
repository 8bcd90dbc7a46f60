"""A policy that is a table of softmaxes, trained by the loop's own stages: thousands of updates in seconds.

The logits of a decision are x[prompt] @ W[:, position]: with one-hot features every prompt has parameters of its own;
with fewer features than prompts they share them, as prompts share the weights of a language model. Token 0 ends a
rollout in worlds where rollouts may end. Everything after the rollout (shaping, filters, credit, selection, update) is
Coterie's, with the recipe's pieces.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.claims import Figures, Side, resolved

Table = dict[str, Any]


@dataclass
class World:
    """Prompts, the policy's beginnings, what a rollout is worth, and what is measured.

    features: [N,F]. weights: [F,T,V], where the policy begins. score: columns of sampled rollouts from their table
    (prompt_index, tokens, mask, lengths) and a generator; it gives rewards at least. measure: figures of a policy's
    probabilities [N,T,V]. stops: token 0 ends a rollout. reference: its weights, where not those of the beginning.
    annotations: components that are no reward, of weight 0.
    """

    features: Tensor
    weights: Tensor
    score: Callable[[Table, torch.Generator], Table]
    measure: Callable[[Tensor], Figures]
    stops: bool = False
    reference: Tensor | None = None
    annotations: Sequence[str] = ()


class Tabular:
    """What the loop asks of a policy."""

    shares_prefix = independent = False
    exact = True
    tolerance = 1e-6
    exact = True

    def __init__(self, world: World) -> None:
        self.features, self.stops, self.version = world.features, world.stops, 0
        self.weights = world.weights.clone().requires_grad_()

    def trainable_parameters(self) -> list[Tensor]:
        return [self.weights]

    def log_probabilities(self) -> Tensor:
        """[N,T,V]"""
        return torch.einsum("nf,ftv->ntv", self.features, self.weights).log_softmax(-1)

    def score(self, rollouts: Any, wanted: set[str] | None = None) -> dict[str, Tensor]:
        """Log-probs and entropies of the decisions taken, with gradient. [B,T]"""
        prompt = torch.tensor([p.index for p in rollouts.prompts])[rollouts["groups"]]
        every = self.log_probabilities()[prompt, : rollouts["mask"].shape[1]]
        logp = every.gather(-1, rollouts["tokens"].unsqueeze(-1)).squeeze(-1)
        mask = rollouts["mask"]
        entropy = -(every.exp() * every).sum(-1)
        return {n: torch.where(mask, v, torch.zeros_like(v)) for n, v in (("logp", logp), ("entropy", entropy))}

    @torch.no_grad()
    def rollout(self, prompts: Sequence[int], group: int, draw: torch.Generator, serial: bool = False) -> Any:
        """Complete each prompt `group` times; `serial`: as the strategy serial_exit does, one thought left early."""
        from coterie.rollouts import Prompt, Rollouts, Sampling

        index = torch.tensor(prompts).repeat_interleave(group)
        every = self.log_probabilities()[index]
        rows, width, _ = every.shape
        tokens = torch.multinomial(every.exp().flatten(0, 1), 1, generator=draw).view(rows, width)
        ended = (tokens == 0).cumsum(-1) - (tokens == 0).long() > 0 if self.stops else torch.zeros_like(tokens).bool()
        mask = ~ended
        finished = (tokens == 0).any(-1) if self.stops else torch.ones(rows, dtype=torch.bool)
        parent, branch = torch.arange(rows), torch.full((rows,), -1)
        if serial:  # all but the first of a group are exits from its thought, which take no decision after the cut
            parent = parent // group * group
            tokens, thought = tokens[parent], ((tokens != 0) & mask).sum(-1)[parent]
            exits = 1 + (torch.rand(rows, generator=draw) * thought.clamp_min(1)).long()
            exits = exits.view(-1, group).sort(-1)[0].flatten()  # in order of exit
            first = parent == torch.arange(rows)
            branch = torch.where(first, -1, exits)
            mask = torch.where(first.unsqueeze(-1), mask[parent], torch.arange(width) < exits.unsqueeze(-1))
            finished = finished[parent]
        columns: Table = {
            "groups": torch.arange(len(prompts)).repeat_interleave(group), "prompt_index": index, "mask": mask,
            "tokens": torch.where(mask, tokens, 0), "lengths": mask.sum(-1), "truncated": ~finished,
            "version": torch.full(mask.shape, self.version), "parent": parent, "branch": branch,
        }  # fmt: skip
        rollouts = Rollouts([Prompt((1,), {}, i) for i in prompts], columns, Sampling(max_tokens=width))
        found = self.score(rollouts)
        return rollouts.with_columns(logp_old=found["logp"], entropy_old=found["entropy"])


def play(world: World, recipe: Any, steps: int) -> tuple[Tabular, list[Figures]]:
    """Train on a world by a recipe; the policy and the metrics of each step."""
    from coterie.clock import Clock
    from coterie.collect import _apply_filters, _tell, shape
    from coterie.history import History
    from coterie.learner import Learner
    from coterie.loop import credit, select
    from coterie.metrics import Collector, collect
    from coterie.optimizer_step import optimizer_at
    from coterie.run import Run
    from coterie.streams import stream
    from coterie.update import update
    from coterie.workers import Alone

    policy, reference, settings = Tabular(world), Tabular(world), recipe.settings
    reference.weights = (world.weights if world.reference is None else world.reference).clone()
    old = SimpleNamespace(score=lambda rollouts: {"logp_ref": reference.score(rollouts)["logp"].detach()})
    run: Any = SimpleNamespace(
        estimates=False,
        recipe=recipe, settings=settings, policy=policy, metrics={}, first_update=True,
        score_columns={"logp", "entropy"}, history=History(), curriculum=recipe.single["draw.curriculum"],
        optimizer=optimizer_at(recipe, policy.trainable_parameters(), 0), reference=lambda: old,
        whole_groups=any(b.piece.whole_groups for _, b in recipe.all_bound()), needs_reference=lambda: True,
        budget=settings.rollout.max_tokens, recorded=None, workers=Alone(),
    )  # fmt: skip
    run.table = lambda rollouts, step: Run.table(run, rollouts, step)
    run.learner = Learner(policy)  # type: ignore[arg-type]
    serial = recipe.single["rollout.strategy"].piece.slug == "serial_exit"
    history: list[Figures] = []
    for step in range(steps):
        draw = torch.Generator().manual_seed(stream(settings.seed, "claim", step))
        clock, recorded = Clock(), Collector()
        asked = {"size": len(world.features), "count": settings.draw.prompts, "seed": settings.seed}
        indices = run.curriculum(asked, step)
        batch = policy.rollout(list(indices), settings.rollout.group_size, draw, serial)
        batch = batch.with_columns(**world.score(batch.columns, draw))
        run.reward_weights = {n: float(n not in world.annotations) for n in batch.columns.get("components", {})}
        run.metrics = {"reward": float(batch["rewards"].mean()), "length": float(batch["lengths"].double().mean())}
        _tell(run, batch)
        with collect(recorded):
            kept = shape(run, batch, step, clock)
            if recipe.chain["selection.filters"]:
                kept = _apply_filters(run, kept, step, clock)
            if kept is not None:
                kept = select(run, credit(run, kept, step, clock), step, clock)
                advantages = kept["advantages"]
                moved = (advantages != 0) if advantages.dim() == 1 else (advantages != 0).any(-1)
                run.metrics["used"] = float((moved & (_rows(kept["weights"]) != 0)).double().sum() / len(batch))
        run.metrics |= recorded.means()
        if kept is not None:
            update(run, kept, step, clock)
        history.append(run.metrics)
    return policy, history


def _rows(weights: Tensor) -> Tensor:
    return weights if weights.dim() == 1 else weights.abs().amax(-1)


def bandit(
    make: Callable[[torch.Generator], World], steps: int, base: Sequence[str], averaged: Sequence[str] = ()
) -> Callable[[Side, int], Figures]:
    """An experiment's setting: the world of a seed, trained on by a side. `averaged`: metrics of the steps whose
    mean is a figure too.
    """

    def setting(side: Side, seed: int) -> Figures:
        world = make(torch.Generator().manual_seed(seed))
        plain = ["optimizer={sgd: {lr: 1.0}}", "update.max_grad_norm=1e9", *base]
        recipe = resolved(side, seed, [f"rollout.max_tokens={world.weights.shape[1]}", *plain], task="sort")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            policy, history = play(world, recipe, steps)
        with torch.no_grad():
            found = world.measure(policy.log_probabilities().exp())
        for name in averaged:
            values = [row[name] for row in history if name in row]
            found[name] = sum(values) / max(len(values), 1)
        return found

    return setting
