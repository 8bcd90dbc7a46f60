"""A task: prompts to train on, problems held out, and who says what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.environments.base import World
from coterie.environments.scripted import Script, played, played_together
from coterie.errors import RecipeError
from coterie.rewards.functions import WeightedReward
from coterie.tasks.split import Row


@dataclass(frozen=True)
class Latent:
    """What a sample is where it is no text: an array of `shape`, asked for by one of `classes`."""

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    low: float = -1.0
    high: float = 1.0
    """The values that are drawn black and white, where samples are pictures; where these are grey, white and black."""
    told: bool = False
    """Whether a prompt is a sample that is to be made better: its numbers as text, with blanks between."""


PICTURES = Latent((), (), low=0.0)
"""Pictures [H,W,3], or videos [F,H,W,3], from 0 to 1, of whatever size a pipeline draws, asked for by any text."""


@dataclass
class Task:
    """Rows are dicts with a "prompt" (text or a list of messages) and whatever the graders read.

    `verify(completion, row)` is the verdict, `rewards` what is reinforced. Where one of the rewards is the verdict,
    `verdict` names it and it is computed once. `reference(row)` is a correct completion, `corrupt(row, seed)` a wrong
    one; both serve warm starts and `validate`. `vocabulary` are the characters a tokenizer made for this task knows.
    """

    name: str
    train: Sequence[Row]
    held_out: Sequence[Row]
    verify: Callable[[Any, Row], bool] | None = None
    rewards: list[WeightedReward] = field(default_factory=list)
    verdict: str | None = None
    reference: Callable[[Row], Any] | None = None
    corrupt: Callable[[Row, int], Any] | None = None
    demonstration: Callable[[Row], str | None] | None = None
    """A completion to imitate, None for a row that has none; where this is not set, `reference` serves."""
    answer: Callable[[str], str] | None = None
    """The final answer in a completion, by which majority votes are counted; by default the whole text."""
    process: WeightedReward | None = None
    """Scores each step of a completion, for methods that ask for that."""
    vocabulary: str | None = None
    latent: Latent | None = None
    """Where samples are arrays that a policy denoises: then completions are arrays, and a prompt is a class."""
    world: World | None = None
    """Where rollouts are episodes of many turns: then `verify` is not asked, the episode knows."""
    script: Script | None = None
    """In a world: the next action of a player who succeeds, or of each of several, given the observations so far (see
    `coterie.environments.scripted`). Like `reference`, it serves warm starts and `validate`."""
    notes: list[str] = field(default_factory=list)
    """What happened to the data on the way in, for example rows dropped because they were held out too."""

    @property
    def provides(self) -> frozenset[str]:
        """Columns that come of its world."""
        if self.world is None:
            return frozenset()
        own = {"turn", "step_rewards", "state_key"}
        shared = {"other_rewards", "episode"} if self.world.agents else set()
        return frozenset(own | shared if self.world.context is None else own | {"turns_after"})

    @property
    def judges(self) -> bool:
        """Whether it says what is right: by a verifier, or by its world."""
        return self.verify is not None or self.world is not None


@dataclass
class Report:
    """What `validate` found."""

    task: str
    rows: int = 0
    references_rejected: int = 0
    corrupted: int = 0
    corrupted_accepted: int = 0
    first_rejected: str | None = None
    first_accepted: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.rows > 0 and not self.references_rejected and not self.corrupted_accepted


def validate(task: Task, limit: int | None = None) -> Report:
    """Does the verifier accept every reference answer, and reject each one after it was corrupted?

    Looks at train and held-out rows. Raises RecipeError where the task has no verifier or no references.
    """
    if task.world is not None and task.script is not None:
        return _validate_world(task, task.world, task.script, limit)
    if task.verify is None or task.reference is None:
        lacks = "verifier" if task.verify is None else "reference answers"
        raise RecipeError(
            f"task '{task.name}' has no {lacks} to validate", hint="give it a verifier and an answer column"
        )
    report = Report(task.name, notes=list(task.notes))
    for source in (task.train, task.held_out):
        for i in range(len(source) if limit is None else min(limit, len(source))):
            row = source[i]
            report.rows += 1
            good = task.reference(row)
            if not task.verify(good, row):
                report.references_rejected += 1
                report.first_rejected = report.first_rejected or f"{row['prompt']!r} -> {good!r}"
            if task.corrupt is not None:
                bad = task.corrupt(row, i)
                report.corrupted += 1
                if task.verify(bad, row):
                    report.corrupted_accepted += 1
                    report.first_accepted = report.first_accepted or f"{row['prompt']!r} -> {bad!r}"
    return report


def _validate_world(task: Task, world: World, script: Callable[[Row, Sequence[Any]], str], limit: int | None) -> Report:
    """Does the script succeed in every episode, and a player who says nothing in none?"""
    report = Report(task.name, notes=list(task.notes))
    for source in (task.train, task.held_out):
        for i in range(len(source) if limit is None else min(limit, len(source))):
            row = source[i]
            report.rows += 1
            if not _won(world, row, script):
                report.references_rejected += 1
                report.first_rejected = report.first_rejected or f"{row['prompt']!r}: the script does not succeed"
            report.corrupted += 1
            if _won(world, row, lambda row, observations: ""):
                report.corrupted_accepted += 1
                report.first_accepted = report.first_accepted or f"{row['prompt']!r}: empty actions succeed"
    return report


def _won(world: World, row: Row, script: Script) -> bool:
    """Whether the script succeeds; of several agents all."""
    if world.agents:
        return all(part.episode.success for part in played_together(world, row, script))
    return played(world, row, script).success
