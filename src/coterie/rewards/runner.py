"""Runs reward functions over a batch: every sample ends as a value, none, an error or a timeout, never a silent 0."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from coterie.errors import RewardError
from coterie.rewards.ahead import Ahead
from coterie.rewards.batch import Batch, as_list, as_number, as_numbers
from coterie.rewards.functions import WeightedReward
from coterie.rewards.pairwise.judge import Pairs, Points, as_points
from coterie.rewards.process import STEPS
from coterie.rewards.remembering import memory_of
from coterie.rewards.worker import Raised, Timeout, Worker

OUTCOMES = ("value", "none", "error", "timeout")
MESSAGE_LENGTH = 500


@dataclass
class Scores:
    """`components[name]`: one float a sample, NaN where the function gave none. `outcomes[name]`: counts by outcome.

    Functions of steps give a list of floats a sample, or None, in `steps[name]` instead.
    """

    components: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[list[float] | None]] = field(default_factory=dict)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    """The first offending sample of each function and kind, in words."""


class _Failure(Exception):
    """A call that gave no answer. `kind` is an outcome; the message says what happened."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class RewardRunner:
    """The reward functions of a run, and its judge. Those with a timeout keep a process of their own until `close`."""

    def __init__(self, functions: Sequence[WeightedReward], judge: WeightedReward | None = None) -> None:
        self.functions = list(functions)
        self._every = self.functions if judge is None else [*self.functions, judge]
        self._workers = {f.name: Worker(f.fn, f.name) for f in self._every if f.timeout is not None}
        self.ahead = Ahead(self.functions, lambda f, text, row: self._call(f, text, dict(row)))

    def close(self) -> None:
        """End the processes. Dropping the runner, or the end of Python, does the same."""
        self.ahead.close()
        for worker in self._workers.values():
            worker.close()

    @property
    def memories(self) -> dict[str, Any]:
        """What the functions remember, each object once, by the name of the first function that it is behind."""
        found: dict[int, tuple[str, Any]] = {}
        for function in self._every:
            owner = memory_of(function.fn, function.name)
            if owner is not None:
                found.setdefault(id(owner), (function.name, owner))
        return dict(found.values())

    def learn(self, batch: Batch) -> None:
        """Teach those that learn with what was rolled out. Raises RewardError where one cannot take it."""
        for name, owner in self.memories.items():
            lesson = getattr(owner, "learn", None)
            if lesson is None or not len(batch):
                continue
            function = WeightedReward(lesson, name)
            failure = self._attempt(function, batch)
            if isinstance(failure, _Failure):
                raise RewardError(f"learn of reward function '{name}' {failure}", hint="mend it")

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        rows: Sequence[dict[str, Any]],
        completion_ids: Sequence[Sequence[int]],
    ) -> Scores:
        """Grade a batch by every function; grades that were asked for ahead are taken over.

        Raises RewardError as each function's `on_error` says, and always for an answer that is no reward: wrong length,
        not a number, not finite.
        """
        batch = Batch(prompts, completions, rows, completion_ids)
        begun = self.ahead.collect()
        answers = self._gather(batch)
        scores = Scores()
        for function in self.functions:
            grade = _Grade(function, batch, scores)
            if function.per_sample:
                for i, completion in enumerate(completions):
                    asked, answer = begun.get((function.name, i), (None, None))
                    known = asked is not None and asked == completion
                    grade.one(i, answer if known else self._call(function, completion, dict(rows[i])))
            else:
                answer = answers[function.name] if function.name in answers else self._attempt(function, batch)
                self._spread(grade, answer)
            scores.outcomes[function.name] = grade.outcomes
            (scores.steps if function.per_step else scores.components)[function.name] = grade.values
        return scores

    def compare(self, judge: WeightedReward, pairs: Pairs) -> tuple[list[Points | None], Counter[str], list[str]]:
        """The judge's verdicts on all pairs, how many ended in which way, and the first offending pair of each kind.

        Raises RewardError as the judge's `on_error` says, and always for an answer that is no verdict.
        """
        scores = Scores()
        grade = _Grade(judge, pairs, scores)
        self._spread(grade, self._attempt(judge, pairs))
        return grade.values, grade.outcomes, scores.errors

    def _gather(self, batch: Batch) -> dict[str, Any]:
        """Answers, or failures, of the asynchronous functions that run here, all awaited together."""
        mine = [f for f in self.functions if inspect.iscoroutinefunction(f.fn) and f.timeout is None]
        if not mine:
            return {}
        arguments = [batch.arguments(f) for f in mine]

        async def attempt(function: WeightedReward, kwargs: dict[str, Any]) -> Any:
            try:
                return await function.fn(**kwargs)
            except (Exception, SystemExit) as error:  # the user's code runs here
                return _raised(error)

        async def gather() -> list[Any]:
            return await asyncio.gather(*map(attempt, mine, arguments))

        answers = _wait(gather())
        return dict(zip((f.name for f in mine), answers, strict=True))

    def _attempt(self, function: WeightedReward, batch: Batch) -> Any:
        """What a function answers for a batch, or for the one sample in it; or a _Failure as a value."""
        if function.per_sample:
            return self._call(function, batch.completions[0], dict(batch.rows[0]))
        return self._call(function, **batch.arguments(function))

    def _call(self, function: WeightedReward, /, *args: Any, **kwargs: Any) -> Any:
        try:
            if function.timeout is not None:
                return self._workers[function.name].call(args, kwargs, function.timeout)
            answer = function.fn(*args, **kwargs)
            return _wait(_await(answer)) if inspect.isawaitable(answer) else answer
        except Timeout:
            return _Failure("timeout", f"timed out after {function.timeout:g} s")
        except Raised as error:
            return _Failure("error", f"raised {_short(str(error))}")
        except RewardError as error:
            if function.timeout is not None:
                raise  # it cannot be loaded: no policy for single samples applies
            return _raised(error)
        except (Exception, SystemExit) as error:  # the user's code runs here, and must not end ours
            return _raised(error)

    def _spread(self, grade: _Grade, answer: Any) -> None:
        """An answer for the whole batch to its samples. After a raise each sample is tried alone, so that only the
        offenders are treated as such; where none raises alone, the whole batch failed.
        """
        function, batch = grade.function, grade.batch
        if not isinstance(answer, _Failure):
            each = "a list of a number a step (or None)" if function.per_step else "one number (or None)"
            each = "two numbers, or one (or None)," if function.per_pair else each
            kind = {"of": "pair", "by": batch.grader} if function.per_pair else {}
            for i, value in enumerate(as_list(function.name, answer, len(batch), each, **kind)):
                grade.one(i, value)
            return
        alone: list[Any] = [answer] * len(batch)
        if answer.kind == "error" and len(batch) > 1:
            tried = [self._attempt(function, batch.part(i)) for i in range(len(batch))]
            if any(isinstance(a, _Failure) for a in tried):
                alone = [a if isinstance(a, _Failure) else as_list(function.name, a, 1)[0] for a in tried]
        together = all(a is answer for a in alone) and len(batch) > 1
        for i, value in enumerate(alone):
            grade.one(i, value, together=together)


@dataclass
class _Grade:
    """The values of one function over a batch, as they come in."""

    function: WeightedReward
    batch: Batch
    scores: Scores
    values: list[Any] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def one(self, i: int, answer: Any, *, together: bool = False) -> None:
        """Record what the function answered for sample i. Raises RewardError where the policy is to fail."""
        if isinstance(answer, _Failure):
            text = self._words(i, answer, together)
            if self.function.on_error == "fail":
                mend = "mend it, or set its on_error to 'none'" + ("" if self.function.per_pair else " or 'zero'")
                raise RewardError(text, hint=mend)
            if not self.outcomes[answer.kind]:
                self.scores.errors.append(text)
            self.outcomes[answer.kind] += 1
            self.values.append(self._zero(i) if self.function.on_error == "zero" else self._nothing())
        elif answer is None:
            self.outcomes["none"] += 1
            self.values.append(self._nothing())
        else:
            self.values.append(self._number(i, answer))
            self.outcomes["value"] += 1

    def _number(self, i: int, answer: Any) -> Any:
        if self.function.per_pair:
            return as_points(self.function.name, answer, i)
        if not self.function.per_step:
            return as_number(self.function.name, answer, i)
        return as_numbers(self.function.name, answer, i, len(self.batch.rows[i][STEPS]))

    def _zero(self, i: int) -> Any:
        return [0.0] * len(self.batch.rows[i][STEPS]) if self.function.per_step else 0.0

    def _nothing(self) -> Any:
        return None if self.function.per_step or self.function.per_pair else math.nan

    def _words(self, i: int, failure: _Failure, together: bool) -> str:
        unit = self.batch.unit
        where = f"a batch of {len(self.batch)} {unit}s, the first of them" if together else f"{unit} {i}"
        return f"{self.batch.grader} '{self.function.name}' {failure} on {where}: {self.batch.said(i)}"


def _raised(error: BaseException) -> _Failure:
    what = error.message if isinstance(error, RewardError) else str(error)
    return _Failure("error", f"raised {type(error).__name__}: {_short(what)}")


def _short(text: str) -> str:
    """A message that fits a terminal: some exceptions quote a whole completion."""
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 1] + "…"


async def _await(value: Any) -> Any:
    return await value


def _wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end, in a thread of its own where this one runs an event loop already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
