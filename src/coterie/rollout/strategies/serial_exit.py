"""S-GRPO's roll-out: one line of thought, left at several places to answer at once (arXiv:2505.07686)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from coterie.errors import RecipeError
from coterie.pieces import strategy
from coterie.rollout.forks import Line, go_on, lines_of, refuse_stop_strings, room, table, tokens_before
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream

CUE = "\nTime is up. I stop thinking and answer.\n</think>\n\n"


@strategy(paper="arXiv:2505.07686", writes="parent branch", min_group=2, decisions="tokens")
def serial_exit(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    cue: str = CUE,
    end: str = "</think>",
) -> Rollouts:
    """One full rollout a prompt, and early exits from its thought: cut at random, told to stop by `cue`, then answered.

    The thought is what comes before the text `end`, or the whole completion where that does not occur. Exits are drawn
    uniformly from its tokens, some possibly twice. The tokens of the cue are context, no decisions; they, the thought
    and the answer share rollout.max_tokens. rollout.group_size is one full rollout and group_size - 1 exits, in that
    order, with `parent` the full one and `branch` the exit (-1 for the full one).
    """
    refuse_stop_strings(sampling, "serial_exit")
    words = policy.encode_completion(cue) if cue else ()
    latest = [room(policy, p, sampling) - len(words) - 1 for p in prompts]
    if min(latest) < 1:
        raise RecipeError(
            f"the cue of {len(words)} tokens leaves no room for thought and answer in {min(latest) + len(words) + 1}",
            where="rollout.strategy=serial_exit",
            hint="a larger rollout.max_tokens, shorter prompts, or a shorter rollout.strategy.cue",
        )
    full = lines_of(policy.rollout(prompts, [s[:1] for s in seeds], sampling, entropy=entropy))
    lines: list[Line] = []
    forks: list[tuple[Line, list[int]]] = []
    parent: list[int] = []
    branch: list[int] = []
    for line, own in zip(full, seeds, strict=True):
        longest = min(_thought(policy, line, end), latest[line.group])
        draw = np.random.default_rng(stream(own[0], "exits"))
        exits = sorted(draw.integers(min(1, longest), longest, len(own) - 1, endpoint=True).tolist())
        forks += [(line.until(n).followed_by(words), [seed]) for n, seed in zip(exits, own[1:], strict=True)]
        parent += [len(parent)] * len(own)
        branch += [-1, *exits]
    answers = iter(go_on(policy, prompts, forks, sampling, entropy))
    for line, own in zip(full, seeds, strict=True):
        lines += [line, *(next(answers) for _ in own[1:])]
    return table(
        policy, prompts, lines, sampling,
        parent=torch.tensor(parent, device=policy.device), branch=torch.tensor(branch, device=policy.device),
    )  # fmt: skip


def _thought(policy: Any, line: Line, end: str) -> int:
    """How many tokens of a completion come before the text `end`, or before the token that ended it."""
    ids = line.tokens.tolist()
    before = tokens_before(policy, ids, end)
    return len(ids) - (not line.truncated) if before is None else before
