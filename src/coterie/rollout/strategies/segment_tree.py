"""SPO-tree's roll-out: a tree of segments, of whose nodes every one is valued by what came of it (arXiv:2505.23564)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from coterie.errors import RecipeError
from coterie.pieces import strategy
from coterie.rollout.forks import Line, go_on, refuse_stop_strings, room, start, table
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@dataclass
class _Node:
    """A line grown so far, the child numbers on the way to it, and how long the line was where each segment began."""

    line: Line
    path: tuple[int, ...] = ()
    begins: list[int] = field(default_factory=list)


@strategy(paper="arXiv:2505.23564", writes="parent branch turn state_key", decisions="tokens")
def segment_tree(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    branching: tuple[int, ...] = (6, 6, 6),
    segment: int | None = None,
) -> Rollouts:
    """Each prompt's tree of segments; its leaves, with all that led to them, are the rollouts.

    branching: children of a node by level. A segment is `segment` tokens long (by default an equal part of
    rollout.max_tokens), shorter where the completion ends there, and on the last level as long as it takes.
    rollout.group_size is the number of leaves of a full tree, the product of `branching`; completions that end early
    are leaves too, so that a prompt may have fewer. `turn` is the level of each decision, `state_key` [B,U] the node
    each segment starts from, `parent` and `branch` the rollout a leaf took its first segments over from, and where.
    """
    size = len(seeds[0])
    if not branching or min(branching) < 1 or math.prod(branching) != size:
        raise RecipeError(
            f"a tree that branches {'-'.join(map(str, branching))} has {math.prod(branching)} leaves, and "
            f"rollout.group_size is {size}",
            where="rollout.strategy=segment_tree",
            hint=f"rollout.group_size={math.prod(branching)}, or other rollout.strategy.branching",
        )
    refuse_stop_strings(sampling, "segment_tree")
    length = segment or -(-sampling.max_tokens // len(branching))
    live = [_Node(line) for line in start(policy, prompts)]
    leaves: list[_Node] = []
    for level, width in enumerate(branching):
        last = level == len(branching) - 1
        forks = [(n.line, [stream(seeds[n.line.group][0], "tree", *n.path, k) for k in range(width)]) for n in live]
        grown = go_on(policy, prompts, forks, sampling, entropy, at_most=None if last else length)
        parents = [(n, k) for n in live for k in range(width)]
        live = []
        for (node, k), line in zip(parents, grown, strict=True):
            child = _Node(line, (*node.path, k), [*node.begins, len(node.line)])
            full = len(line) >= room(policy, prompts[line.group], sampling)
            (leaves if last or full or not line.truncated else live).append(child)
    leaves.sort(key=lambda n: (n.line.group, n.path))
    return _rows(policy, prompts, leaves, sampling)


def _rows(policy: Any, prompts: list[Prompt], leaves: list[_Node], sampling: Sampling) -> Rollouts:
    """Leaves in order of path. The first leaf below a node is the rollout that its other leaves were forked from."""
    first: dict[tuple[int, ...], int] = {}
    keys: dict[tuple[int, ...], int] = {}
    parent, branch, turn, states = [], [], [], []
    for row, leaf in enumerate(leaves):
        here = leaf.line.group
        forked = max((level for level, k in enumerate(leaf.path) if k > 0), default=0)
        parent.append(first[(here, *leaf.path[:forked])] if forked else row)
        branch.append(leaf.begins[forked] if forked else -1)
        for depth in range(len(leaf.path) + 1):
            first.setdefault((here, *leaf.path[:depth]), row)
        edges = [*leaf.begins, len(leaf.line)]
        turn.append(torch.arange(len(leaf.begins)).repeat_interleave(torch.tensor(edges).diff()))
        states.append([keys.setdefault((here, *leaf.path[:d]), len(keys)) for d in range(len(leaf.path))])
    deepest = max(map(len, states))
    padded = [[*s, *[0] * (deepest - len(s))] for s in states]
    pad = torch.nn.utils.rnn.pad_sequence(turn, batch_first=True, padding_value=-1)
    device = policy.device
    return table(
        policy, prompts, [leaf.line for leaf in leaves], sampling,
        parent=torch.tensor(parent, device=device), branch=torch.tensor(branch, device=device),
        turn=pad.to(device), state_key=torch.tensor(padded, device=device),
    )  # fmt: skip
