"""The vocabulary: every column a piece may name, with its exact shape, who provides it, and what it means.

A piece asks for a column by naming it as a positional parameter. A new column is added here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RewardError, ShapeError, did_you_mean


@dataclass(frozen=True)
class Column:
    """One column of the table. `shapes` are the admissible ones, over B rollouts, T decisions, P prompts, U turns."""

    name: str
    shapes: tuple[str, ...]
    provider: str
    meaning: str
    dtype: str = "float"

    @property
    def shape_text(self) -> str:
        return " or ".join(f"[{s.replace(' ', ',')}]" for s in self.shapes)


_TABLE = """
groups       | B      | draw        | int   | group index: rollouts of one prompt share it
rewards      | B      | score       | float | scalar reward: weighted sum of the components unless a piece combines them
components   | {B}    | score       | float | reward components before combination, by name
correct      | B      | score       | bool  | the verifier's verdict, where the task has one
answer_mask  | B T    | score       | bool  | decisions that spell the final answer, as the task reads it
matched      | B T    | score       | bool  | decisions whose text is in a match of the pattern that the piece names
answers      | B      | score       | int   | number of the final answer: equal in a group iff the answers read alike
token_rewards| B T    | score       | float | reward of each decision: the scalar one on the last, plus dense terms
preview_rewards| B T  | score       | float | reward of the sample that each decision foresees; on the last, its own
mask         | B T    | roll out    | bool  | decisions the policy took (not prompt, padding or tool output)
lengths      | B      | roll out    | int   | number of decisions of each rollout, mask.sum(-1)
truncated    | B      | roll out    | bool  | stopped by the budget, not by itself
tokens       | B T    | roll out    | int   | token ids, where decisions are tokens
logp_old     | B T    | roll out    | float | log-prob under the policy and sampling spec that took the decision
entropy_old  | B T    | roll out    | float | entropy of the decision's distribution when it was taken
version      | B T    | roll out    | int   | version of the weights that took the decision
step_std     | B T    | roll out    | float | standard deviation of a denoising step's noise
step_size    | B T    | roll out    | float | by how much the noise level falls in a denoising step
schedules    | B T    | roll out    | bool  | decision on how to decode, not on a token
step_gain    | B T    | roll out    | float | how far a denoising step's mean moves with the velocity, a factor
pass_index   | B T    | roll out    | int   | forward pass of the rollout in which the decision was taken, from 0
passes       | B      | roll out    | int   | forward passes that the rollout took
logp         | B T    | policy      | float | current log-prob; carries gradient in the update
logp_train   | B T    | policy      | float | the trainer's own log-prob just before the update, without gradient
entropy      | B T    | policy      | float | entropy of the decision's distribution; carries gradient in the update
spread       | B T    | policy      | float | how much the distributions of the group's rollouts differ at this position
influence    | B T    | policy      | float | by how much a step on this decision raises the group's correct rollouts
kl_ref       | B T    | policy      | float | exact KL from the reference's decision to ours; carries gradient
mean_gap     | B T    | policy      | float | exact KL from the decision as it was taken to ours; carries gradient
best_gap     | B T    | policy      | float | squared distance to the velocity on the group's best path; has gradient
fine_gap     | B T    | policy      | float | squared distance to the reference's velocity of finer steps; has gradient
logp_min_p   | B T    | policy      | float | log-prob before the update without unlikely tokens; -inf where this is one
logp_tempered| B T    | policy      | float | log-prob before the update at another temperature
hidden_square| B T    | policy      | float | squared norm of what the output layer reads, over the temperature
score_square | B T    | policy      | float | squared norm of the one-hot decision minus the probabilities
score_variance| B T   | policy      | float | variance of those differences under the probabilities
kl_shown     | B T    | policy      | float | exact KL to us when shown a right answer, NaN where none is; has gradient
entropy_shown| B T    | policy      | float | entropy of the decision when shown a right answer, NaN where none is
logp_ref     | B T    | reference   | float | log-prob under the frozen or slowly moving reference
logp_teacher | B T    | teacher     | float | log-prob under the teacher model, NaN where it says nothing
turn         | B T    | environment | int   | turn or step of each decision, -1 where masked or in none
state_key    | B U    | environment | int   | hashable observation key of each turn
step_rewards | B U    | environment | float | reward of each turn or process step, 0 where there is none
turns_after  | B      | environment | int   | turns behind the row's last, where an episode has several rows
other_rewards| B U    | environment | float | what the other agents earned from each turn's action to its answer
episode      | B      | environment | int   | number of the episode, which rollouts of several agents or calls share
parent       | B      | environment | int   | rollout this one was forked from, itself where it was not
branch       | B      | environment | int   | decision at which it was forked, -1 where it was not
heat         | B      | environment | float | temperature it was drawn at over that of the run, 1 where as the run says
ran          | B      | environment | int   | a tool call made anew: 1 it ran, 0 it did not; -1 the rollout is none
anchor       | B      | environment | bool  | the task's reference answer, put beside the rollouts of its prompt
given        | B T    | environment | bool  | token of the task's reference answer, put there before the rollout began
prompt_index | B      | draw        | int   | stable index of the prompt in the task's training set
ticket       | B      | draw        | int   | number of the rollout's group among all that the run has drawn
drift        | B      | history     | float | mean absolute change of log-prob since the prompt's last visit
advantages   | B,B T  | credit      | float | current advantage; modifiers read it and return a new one
weights      | B,B T  | select      | float | gradient weight of each rollout or decision, 0 drops
ratio        | B,B T  | update      | float | importance ratio, by the recipe's ratio piece
step         | scalar | loop        | int   | optimisation step
budget       | scalar | loop        | int   | completion budget of the run, rollout.max_tokens
reward_weights| scalar | loop       | float | weight of each reward component, a dict by name
"""

GROUPWISE = frozenset({"spread", "influence"})
"""Columns of the policy that compare the rollouts of a group, which is then never split."""

CURVATURE = frozenset({"hidden_square", "score_square", "score_variance"})
"""Columns of the policy that describe how curved a decision's log-prob is in the output layer."""

SHOWN = frozenset({"kl_shown", "entropy_shown"})
"""Columns of the policy that it makes in the update with a right rollout of the group in its prompt."""

BEFORE = CURVATURE | {"logp_min_p", "logp_tempered", "logp_train"}
"""Columns of the policy that are made once a batch, before its first optimizer step, without gradient."""

ARGUMENT = {
    "logp_min_p": "min_p",
    "logp_tempered": "temperature",
    "matched": "pattern",
    "fine_gap": "substeps",
} | dict.fromkeys(sorted(SHOWN), "template")
"""Columns that depend on the piece that reads them, and the name of its setting (or attribute, if it has memory)."""


def _parse(table: str) -> dict[str, Column]:
    columns = {}
    for line in table.strip().splitlines():
        name, shapes, provider, dtype, meaning = (part.strip() for part in line.split("|"))
        columns[name] = Column(name, tuple(s.strip() for s in shapes.split(",")), provider, meaning, dtype)
    return columns


COLUMNS: dict[str, Column] = _parse(_TABLE)


def check(name: str, value: Any, dims: dict[str, int], *, reader: str = "") -> None:
    """Raise ShapeError unless `value` has a shape the vocabulary declares for `name`.

    `dims` binds B, T, U across the columns of one call, so two columns of different size are caught too.
    """
    column = COLUMNS[name]
    if column.shapes == ("{B}",):
        if not isinstance(value, Mapping):
            raise ShapeError(f"column '{name}' must be a dict of tensors by name", where=reader or None)
        for key, part in value.items():
            _check_tensor(f"{name}[{key!r}]", part, ("B",), dims, reader)
        return
    if column.shapes == ("scalar",):
        return
    _check_tensor(name, value, column.shapes, dims, reader)


def _check_tensor(name: str, value: Any, shapes: tuple[str, ...], dims: dict[str, int], reader: str) -> None:
    where = reader or None
    if not isinstance(value, Tensor):
        raise ShapeError(f"column '{name}' must be a tensor, got {type(value).__name__}", where=where)
    for shape in shapes:
        axes = shape.split()
        if len(axes) == value.dim() and all(
            dims.get(axis, size) == size for axis, size in zip(axes, value.shape, strict=True)
        ):
            dims.update(zip(axes, value.shape, strict=True))
            return
    want = " or ".join("[" + ",".join(f"{a}={dims[a]}" if a in dims else a for a in s.split()) + "]" for s in shapes)
    raise ShapeError(
        f"column '{name}' has shape {list(value.shape)}, expected {want}",
        where=where,
        hint="pass one value a rollout as [B] and one a decision as [B,T]; nothing is broadcast silently",
    )


def per_decision(x: Tensor, mask: Tensor) -> Tensor:
    """Spread a [B] column over [B,T]; a [B,T] column passes unchanged. This is the only broadcasting there is."""
    return x.unsqueeze(-1).expand(mask.shape) if x.dim() == 1 else x


def in_shape_of(x: Tensor, like: Tensor) -> Tensor:
    """A [B] column beside `like`, which is [B] or [B,T]: one value a rollout for each of its decisions."""
    return per_decision(x, like) if like.dim() == 2 else x


def component(components: Mapping[str, Tensor], name: str, reader: str) -> Tensor:
    """The reward component that a setting of `reader` names. [B]"""
    if name not in components:
        raise RewardError(
            f"{reader} reads the reward component '{name}', which no reward function gives",
            hint=f"{did_you_mean(name, components)}; a reward function of that name with weight 0 only annotates",
        )
    return components[name]


def per_rollout(
    constant: float, source: str | None, components: Mapping[str, Tensor], like: Tensor, reader: str
) -> Tensor:
    """A setting for each rollout: one number for all, or the component that `source` names. [B]

    Where that component's function gave nothing, the number stands.
    """
    out = torch.full_like(like, constant)
    if source is None:
        return out
    given = component(components, source, reader).to(like.dtype)
    return torch.where(given.isnan(), out, given)


def finite_or_zero(x: Tensor, mask: Tensor) -> Tensor:
    """Zero wherever the mask is off, so that padding (even NaN or -inf) can never reach a sum."""
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
