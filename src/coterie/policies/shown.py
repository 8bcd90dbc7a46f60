"""Prompts with a right rollout of the group behind the question: what a policy says when it is shown the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from coterie.errors import PolicyError
from coterie.rollouts import Rollouts


def prompts(
    rollouts: Rollouts, template: str, encode: Callable[[Any], Sequence[int]], context: int | None
) -> dict[int, Sequence[int]]:
    """By the number of each wrong rollout that has a right one beside it: its prompt with `template` behind, {solution}
    the text of the first right one. Left out where prompt and decisions do not fit the context.
    """
    if "{solution}" not in template:
        raise PolicyError(
            f"the template {template!r} has no place for the right rollout", hint="write {solution} where it stands"
        )
    correct, longest = rollouts["correct"].tolist(), rollouts["mask"].shape[1]
    groups: list[int] = rollouts["groups"].tolist()
    right: dict[int, int] = {}
    for row, group in enumerate(groups):
        if correct[row]:
            right.setdefault(group, row)
    out: dict[int, Sequence[int]] = {}
    for row, group in enumerate(groups):
        if not correct[row] and group in right:
            words = template.replace("{solution}", rollouts.texts[right[group]])
            longer = encode(rollouts.prompts[group].followed_by(words))
            if context is None or len(longer) + longest <= context:
                out[row] = longer
    return out
