"""Demonstrations: completions that somebody else wrote, from the task's rows, as token ids of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from coterie.errors import RecipeError
from coterie.recipe import Recipe
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.tasks.base import Task
from coterie.tasks.split import Row

COLUMNS = frozenset({"groups", "tokens", "mask", "lengths", "prompt_index", "logp", "entropy", "step", "budget"})
"""What an imitation may read: nobody sampled or rewarded a demonstration."""


def teller(task: Task) -> Callable[[Row], str | None] | None:
    """What gives the demonstration of a row, if the task has any: its own, else its reference completions."""
    return task.demonstration or task.reference


def check(recipe: Recipe, task: Task) -> None:
    """Raise RecipeError where the recipe learns from demonstrations and the task has none."""
    reader = needs(recipe)
    imitation = recipe.single.get("objective.imitation")
    if imitation is not None and "mu" not in imitation.settings:
        raise RecipeError(f"objective.imitation={imitation.piece.slug} has no setting mu, its share in the loss")
    strange = [] if imitation is None else [c for c in imitation.piece.required if c not in COLUMNS]
    if strange:
        raise RecipeError(
            f"{reader} reads column '{strange[0]}', and demonstrations have none",
            hint=f"they have {', '.join(sorted(COLUMNS))}",
        )
    if imitation is not None and (task.latent is not None or task.world is not None):
        raise RecipeError(
            f"{reader} imitates texts, and task '{task.name}' has none to imitate", hint="leave objective.imitation out"
        )
    if reader is not None and teller(task) is None:
        raise RecipeError(
            f"{reader} learns from demonstrations, and task '{task.name}' has none",
            hint="data with a column of completions to imitate, solution or the one that task.solution=COLUMN names",
        )


def needs(recipe: Recipe) -> str | None:
    """Which piece of the recipe learns from demonstrations, if one does."""
    if "objective.imitation" in recipe.single:
        return f"objective.imitation={recipe.single['objective.imitation'].piece.slug}"
    strategy = recipe.single["rollout.strategy"].piece
    return f"rollout.strategy={strategy.slug}" if "reference" in strategy.required else None


class Demonstrations:
    """The training rows that have a demonstration, to draw from."""

    def __init__(self, task: Task, policy: Any) -> None:
        self.task, self.policy = task, policy
        self._tell = teller(task)
        self._places: list[int] | None = None

    def of(self, prompt: Prompt) -> tuple[int, ...] | None:
        """Token ids of a prompt's demonstration, its end token included; None where there is none. What would not fit
        into the model's context is cut off.
        """
        text = None if self._tell is None else self._tell(dict(prompt.row))
        if text is None:
            return None
        ids, end = self.policy.encode_completion(text), self.policy.tokenizer.eos_token_id
        if end is not None and ids[-1:] != (end,):
            ids = (*ids, end)
        context = getattr(self.policy.engine, "context", None)
        return ids if context is None else ids[: max(context - len(prompt.tokens), 0)]

    def draw(self, count: int, prompt_at: Callable[[int], Prompt], seed: int) -> Rollouts:
        """`count` rows with a demonstration, drawn by chance: a table of the columns that are known of them."""
        places = self._with_one()
        chosen = np.random.default_rng(seed).integers(len(places), size=count)
        prompts = [prompt_at(places[int(i)]) for i in chosen]
        rows = [torch.tensor(self.of(p) or (), dtype=torch.long) for p in prompts]
        lengths = torch.tensor([len(r) for r in rows])
        tokens = pad_sequence(rows, batch_first=True)
        columns = {
            "groups": torch.arange(len(rows)),
            "tokens": tokens,
            "mask": torch.arange(tokens.shape[1]) < lengths.unsqueeze(-1),
            "lengths": lengths,
            "prompt_index": torch.tensor([p.index for p in prompts]),
        }
        return Rollouts(prompts, {n: c.to(self.policy.device) for n, c in columns.items()}, Sampling())

    def _with_one(self) -> list[int]:
        if self._places is None:
            tell, train = self.task.demonstration, self.task.train
            every = range(len(train))
            self._places = [i for i in every if tell is None or tell(train[i]) is not None]
        return self._places
