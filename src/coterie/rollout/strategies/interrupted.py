"""Forced length interruption: a thought that grows too long is ended for the policy, which then answers (ScaleRL)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.forks import Line, go_on, lines_of, refuse_stop_strings, room, table
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream

CUE = "\nThe time to think is over. Now the answer.\n</think>\n\n"


@strategy(paper="arXiv:2510.13786")
def interrupted(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    *,
    budget: float = 0.8,
    cue: str = CUE,
    end: str = "</think>",
) -> Rollouts:
    """Independent rollouts; one that is still thinking after a share `budget` of rollout.max_tokens is told to answer.

    It is thinking while the text `end` has not occurred. The `cue` is put behind it, as context and not as decisions,
    and it goes on with what is left of rollout.max_tokens. So a long thought is no failure by itself, and no length
    penalty is needed. A rollout that has said `end` goes on undisturbed. No stop strings.
    """
    refuse_stop_strings(sampling, "interrupted")
    words = policy.encode_completion(cue) if cue else ()
    spare = min(room(policy, p, sampling) for p in prompts)
    thought = int(spare * budget)
    if thought < 1 or spare - thought - len(words) < 1:
        raise RecipeError(
            f"of {spare} tokens a thought takes {thought} and the cue {len(words)}, which leaves nothing",
            where="rollout.strategy=interrupted",
            hint="a larger rollout.max_tokens, a budget further from 0 and 1, or a shorter rollout.strategy.cue",
        )
    begun = lines_of(policy.rollout(prompts, seeds, replace(sampling, max_tokens=thought), entropy=entropy))
    going = [i for i, line in enumerate(begun) if line.truncated]
    told = {i for i in going if not end or end not in policy.decode(begun[i].tokens.tolist())}
    every = [seed for own in seeds for seed in own]
    forks: list[tuple[Line, list[int]]] = [
        (begun[i].followed_by(words) if i in told else begun[i], [stream(every[i], "answer")]) for i in going
    ]
    lines = list(begun)
    for i, line in zip(going, go_on(policy, prompts, forks, sampling, entropy), strict=True):
        lines[i] = line
    record("rollout/interrupted_share", len(told) / max(len(lines), 1))
    return table(policy, prompts, lines, sampling)
