"""GHPO's roll-out: prompts that nobody solved are sampled again with the beginning of their solution (2507.10628)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.forks import Line, lines_of, room, table
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream

CUE = "\nHere is how a correct solution begins:\n"


@strategy(paper="arXiv:2507.10628", decisions="tokens")
def hinted(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    step: int,
    reference: Callable[[Mapping[str, Any]], str | None] | None,
    verify: Callable[[Any, Mapping[str, Any]], bool],
    *,
    shares: tuple[float, ...] = (0.25, 0.5, 0.75),
    cue: str = CUE,
    after: int = 0,
) -> Rollouts:
    """Plain sampling; a group without a right rollout is sampled anew with a hint in its prompt, longer each time.

    A hint is a share of the characters of the task's demonstration, put behind the prompt and `cue`. shares: those
    tried in turn while the verifier accepts no rollout of the group; the last one stays, solved or not, and what was
    sampled before is thrown away. The hint is part of the group's prompt, so rollouts are on policy and its tokens
    teach nothing; graders see the row as it was. after: the first step with hints. A prompt without a demonstration, or
    without room for hint and rollout.max_tokens, keeps what it has.
    """
    if list(shares) != sorted(shares) or any(not 0 < s < 1 for s in shares):
        raise RecipeError(
            f"hints grow and tell less than all, got shares {list(shares)}",
            where="rollout.strategy.shares",
            hint="rollout.strategy.shares=[0.25,0.5,0.75]",
        )
    asked, told = list(prompts), [0.0] * len(prompts)
    groups: dict[int, list[Line]] = _sample(policy, prompts, seeds, range(len(prompts)), sampling, entropy)

    def failed(which: Sequence[int]) -> list[int]:
        texts = {g: [policy.decode(line.tokens.tolist(), sampling.stop) for line in groups[g]] for g in which}
        return [g for g, own in texts.items() if not any(verify(text, prompts[g].row) for text in own)]

    lost = failed(range(len(prompts)))
    record("hint/failed_share", len(lost) / max(len(prompts), 1))
    for stage, share in enumerate(shares if step >= after else ()):
        again = []
        for g in lost:
            text = None if reference is None else reference(prompts[g].row)
            words = None if text is None else cue + begin(text, share)
            longer = None if words is None else replace(prompts[g], tokens=policy.encode(prompts[g].followed_by(words)))
            if longer is not None and room(policy, longer, sampling) == sampling.max_tokens:
                asked[g], told[g] = longer, share
                again.append(g)
        if not again:
            break
        fresh = [[stream(seed, "hint", stage) for seed in own] for own in seeds]
        groups |= _sample(policy, asked, fresh, again, sampling, entropy)
        solved = {*again} - {*failed(again)}
        lost = [g for g in lost if g not in solved]
    record("hint/share", sum(told) / max(len(told), 1))
    record("hint/unsolved_share", len(lost) / max(len(prompts), 1))
    return table(policy, asked, [line for g in sorted(groups) for line in groups[g]], sampling)


def begin(text: str, share: float) -> str:
    """The first characters of a solution."""
    return text[: round(share * len(text))]


def _sample(
    policy: Any,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    which: Sequence[int],
    sampling: Sampling,
    entropy: bool,
) -> dict[int, list[Line]]:
    """Rollouts of some groups, by group."""
    made = policy.rollout([prompts[g] for g in which], [seeds[g] for g in which], sampling, entropy=entropy)
    out: dict[int, list[Line]] = {g: [] for g in which}
    for line in lines_of(made):
        own = which[line.group]
        out[own].append(replace(line, group=own))
    return out
