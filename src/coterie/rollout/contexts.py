"""What a policy still reads of an episode that grows: all of it, its last turns, or a report that it writes itself.

A rewrite of history starts a new segment: a row of its own in the table, with the prompt of the episode, the new
context as tokens that nobody decided on, and the decisions taken in it. So every decision is trained on under the very
tokens that were before it when it was sampled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from coterie.environments.base import Episode
from coterie.errors import RecipeError
from coterie.rollout.forks import Line
from coterie.rollouts import Rollouts


@dataclass(frozen=True)
class Moment:
    """Where an episode stands after the world has answered, in text and in tokens."""

    episode: Episode
    turns: Sequence[Sequence[int]]
    """The turns in the context, oldest first: the tokens of each action and of what it was answered, as they stand."""
    encode: Callable[[str], Sequence[int]]
    reply: Callable[[Sequence[int]], Sequence[int]]
    """Tokens of the world's last answer after an action whose tokens are given."""


class Context(Protocol):
    """Tokens of the turns that the policy reads next after its prompt, or None: it goes on reading all it has read."""

    def __call__(self, moment: Moment) -> Sequence[Sequence[int]] | None: ...


@dataclass(frozen=True)
class Window:
    """The last `keep` turns, in the tokens they were sampled in. Cut when there are `longest` turns to read, so that
    not every turn makes a segment."""

    keep: int = 2
    longest: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.keep < self.longest:
            raise RecipeError(
                f"a window keeps fewer turns than it may grow to, got {self.keep} and {self.longest}",
                hint="Window(keep=2, longest=4)",
            )

    def __call__(self, moment: Moment) -> Sequence[Sequence[int]] | None:
        if len(moment.turns) < self.longest:
            return None
        return moment.turns[len(moment.turns) - self.keep :]


_THOUGHT = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Workspace:
    """The question, the report as it stands, the last action and what it was answered (IterResearch, arXiv:2511.07327).

    The report is what the policy last wrote in <tag>…</tag>; thoughts (<think>…</think>) are not kept. Each turn is a
    segment. The report is text that is read anew and so encoded anew; what is trained on are the tokens it was sampled
    in, in the turn that wrote it.
    """

    tag: str = "report"

    def __call__(self, moment: Moment) -> Sequence[Sequence[int]]:
        spoken = [_THOUGHT.sub("", action) for action in moment.episode.actions]
        pattern = re.compile(rf"<{self.tag}>.*?</{self.tag}>", re.DOTALL)
        reports = [found for action in spoken for found in pattern.findall(action)]
        text = (reports[-1] if reports else "") + pattern.sub("", spoken[-1])
        said = list(moment.encode(text))
        return [[*said, *moment.reply(said)]]


@dataclass
class Segment:
    """A row under way: a line, the turn of each of its tokens (-1 where nobody decided) and where each turn begins."""

    line: Line
    turns: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    first: int = 0
    """The first turn of the episode that was decided in it."""

    def spans(self) -> list[list[int]]:
        """The tokens of each turn in it, those that were carried over included."""
        tokens = self.line.tokens.tolist()
        return [tokens[a:b] for a, b in zip(self.starts, [*self.starts[1:], len(tokens)], strict=True)]


def cut(segment: Segment, blank: Line, context: Context, moment: Moment) -> Segment:
    """The segment to go on in, which is the same one where the context only grows."""
    kept = context(moment)
    if kept is None:
        return segment
    starts = [sum(map(len, kept[:k])) for k in range(len(kept))]
    ids = [t for tokens in kept for t in tokens]
    return Segment(blank.followed_by(ids), [-1] * len(ids), starts, moment.episode.turns)


def one_row_each(rollouts: Rollouts) -> Rollouts:
    """The last row of each episode, with the decisions of all its rows counted in `lengths`."""
    if "turns_after" not in rollouts:
        return rollouts
    last = rollouts["turns_after"] == 0
    number = last.long().cumsum(0) - last.long()
    lengths = torch.zeros_like(rollouts["lengths"]).index_add(0, number, rollouts["lengths"])
    out = rollouts.rows(last)
    return replace(out, columns={**out.columns, "lengths": lengths[: len(out)]})
