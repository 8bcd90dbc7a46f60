"""How a batch is cut into parts that go through the model at once, by a budget of tokens."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

import torch
from torch import Tensor

from coterie.rollouts import Rollouts


def microbatches(
    rollouts: Rollouts, budget: int, whole_groups: bool = False, shared_prefix: bool = False
) -> list[Tensor]:
    """Row indices cut so that each part holds at most `budget` prompt and completion tokens (one row may exceed it).

    Rows are taken longest first, so that a part is padded little; with `whole_groups` a group is never split. With
    `shared_prefix` nothing is padded and a group's prompt counts once in each part that has rows of the group: whole
    groups are taken where one fits the budget, and a group that does not is cut into as few parts as it takes. What a
    rollout has in common with the one that it was forked from counts once in a part that has both.
    """
    groups, lengths = rollouts["groups"].tolist(), _fed(rollouts).tolist()
    forks = _forks(rollouts) if shared_prefix and "parent" in rollouts and "branch" in rollouts else {}
    prompt = [len(p.tokens) for p in rollouts.prompts]
    units: list[list[int]]
    if whole_groups or shared_prefix:
        members: dict[int, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(group, []).append(row)
        units = list(members.values())
        if not whole_groups:
            units = [piece for unit in units for piece in _cut(unit, lengths, forks, budget - prompt[groups[unit[0]]])]
    else:
        units = [[row] for row in range(len(groups))]

    def longest(unit: list[int]) -> int:
        return max(prompt[groups[r]] + lengths[r] for r in unit)

    def tokens(unit: list[int]) -> int:
        return prompt[groups[unit[0]]] + sum(_own(r, lengths, forks, unit) for r in unit)

    units.sort(key=lambda unit: -(tokens(unit) if shared_prefix else longest(unit)))
    parts: list[list[int]] = []
    width = total = 0
    for unit in units:
        total += tokens(unit)
        if not parts or (total if shared_prefix else width * (len(parts[-1]) + len(unit))) > budget:
            parts.append([])
            width, total = longest(unit), tokens(unit)
        parts[-1] += unit
    return [torch.tensor(sorted(p), device=rollouts["groups"].device) for p in parts]


def _fed(rollouts: Rollouts) -> Tensor:
    """Tokens of each rollout up to its last decision: what a world said in between costs what a decision costs. [B]"""
    if "turn" not in rollouts:
        return rollouts["lengths"]
    mask = rollouts["mask"]
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(-1)


class _Fork(NamedTuple):
    """`tree` is the first rollout that this one comes from, `common` the decisions it took over from its parent."""

    tree: int
    parent: int
    common: int


def _forks(rollouts: Rollouts) -> dict[int, _Fork]:
    """The rows that were forked from others. Empty where none was."""
    parent, branch = rollouts["parent"], rollouts["branch"]
    row = torch.arange(len(parent), device=parent.device)
    tree = parent
    for _ in range(len(parent).bit_length()):  # each time twice as far up
        tree = tree[tree]
    before = torch.arange(rollouts["mask"].shape[1], device=branch.device) < branch.unsqueeze(-1)
    columns = (x.tolist() for x in (row, tree, parent, (rollouts["mask"] & before).sum(-1)))
    return {r: _Fork(t, p, n) for r, t, p, n in zip(*columns, strict=True) if r != p}


def _own(row: int, lengths: list[int], forks: dict[int, _Fork], beside: Container[int]) -> int:
    """Decisions of a row that are not those of its parent, if the parent is beside it."""
    return lengths[row] - forks[row].common if row in forks and forks[row].parent in beside else lengths[row]


def _cut(rows: list[int], lengths: list[int], forks: dict[int, _Fork], room: int) -> list[list[int]]:
    """Rows in order, a tree after the other, cut where the sum of their lengths would exceed `room`."""
    pieces: list[list[int]] = []
    total = 0
    for row in sorted(rows, key=lambda r: (forks[r].tree, r) if r in forks else (r, r)):
        total += _own(row, lengths, forks, pieces[-1] if pieces else ())
        if not pieces or total > room:
            pieces.append([])
            total = lengths[row]
        pieces[-1].append(row)
    return pieces
