"""Runs reward functions over a batch: every sample ends as a value, none, an error or a timeout, never a silent 0."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.errors import RewardError
from coterie.rewards.functions import WeightedReward
from coterie.rewards.worker import Raised, Timeout, Worker

OUTCOMES = ("value", "none", "error", "timeout")


@dataclass
class Scores:
    """`components[name]`: one float a sample, NaN where the function gave none. `outcomes[name]`: counts by outcome."""

    components: dict[str, list[float]] = field(default_factory=dict)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    """The first offending sample of each function and kind, in words."""


@dataclass(frozen=True)
class _Batch:
    prompts: Sequence[Any]
    completions: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    ids: Sequence[Sequence[int]]

    def part(self, i: int) -> _Batch:
        return _Batch(self.prompts[i : i + 1], self.completions[i : i + 1], self.rows[i : i + 1], self.ids[i : i + 1])

    def arguments(self, fn: Callable[..., Any]) -> dict[str, Any]:
        """What TRL passes: prompts, completions (messages where prompts are), every column, ids; only what fn takes."""
        chat = bool(self.prompts) and not isinstance(self.prompts[0], str)
        texts = [[{"role": "assistant", "content": c}] for c in self.completions] if chat else list(self.completions)
        columns = {k: [r.get(k) for r in self.rows] for k in (self.rows[0] if self.rows else {}) if k != "prompt"}
        every = {**columns, "prompts": list(self.prompts), "completions": texts, "completion_ids": list(self.ids)}
        parameters = inspect.signature(fn).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return every
        return {p.name: every[p.name] for p in parameters if p.name in every}


class RewardRunner:
    """The reward functions of a run. Those with a timeout keep a process of their own until `close`."""

    def __init__(self, functions: Sequence[WeightedReward]) -> None:
        self.functions = list(functions)
        self._workers = {f.name: Worker(f.fn) for f in self.functions if f.timeout is not None}
        atexit.register(self.close)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        atexit.unregister(self.close)

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        completion_ids: Sequence[Sequence[int]],
        *,
        only: str | None = None,
    ) -> Scores:
        """Grade a batch by every function (or `only` one). Raises RewardError as each function's `on_error` says."""
        batch, scores = _Batch(prompts, completions, rows, completion_ids), Scores()
        chosen = [f for f in self.functions if only in (None, f.name)]
        ready = self._run_async(chosen, batch)
        for function in chosen:
            outcomes: Counter[str] = Counter()
            if function.per_sample:
                values = [self._sample(function, batch, i, outcomes, scores) for i in range(len(completions))]
            else:
                values = self._whole(function, batch, ready.get(function.name), outcomes, scores)
            scores.components[function.name], scores.outcomes[function.name] = values, outcomes
        return scores

    def _run_async(self, functions: list[WeightedReward], batch: _Batch) -> dict[str, Any]:
        """Answers (or exceptions) of the asynchronous functions, all awaited together."""
        mine = [f for f in functions if inspect.iscoroutinefunction(f.fn) and f.timeout is None]
        if not mine:
            return {}

        async def gather() -> list[Any]:
            return await asyncio.gather(*(f.fn(**batch.arguments(f.fn)) for f in mine), return_exceptions=True)

        return dict(zip((f.name for f in mine), asyncio.run(gather()), strict=True))

    def _call(self, function: WeightedReward, batch: _Batch, one: bool) -> Any:
        args = (batch.completions[0], dict(batch.rows[0])) if function.per_sample else ()
        kwargs = {} if function.per_sample else batch.arguments(function.fn)
        if function.timeout is not None:
            return self._workers[function.name].call(args, kwargs, function.timeout)
        answer = function.fn(*args, **kwargs)
        return asyncio.run(_await(answer)) if inspect.isawaitable(answer) else answer

    def _whole(
        self, function: WeightedReward, batch: _Batch, ready: Any, outcomes: Counter[str], scores: Scores
    ) -> list[float]:
        """One call for the batch; if it raises, sample by sample, so that only the offenders are treated as such."""
        try:
            if isinstance(ready, BaseException):
                raise ready
            answer = ready if ready is not None else self._call(function, batch, one=False)
        except Timeout:
            return [self._failed(function, batch, i, "timeout", "", outcomes, scores) for i in range(len(batch.rows))]
        except Exception:
            if function.timeout is None and len(batch.rows) > 1:
                return [self._sample(function, batch, i, outcomes, scores) for i in range(len(batch.rows))]
            return [self._sample(function, batch.part(i), 0, outcomes, scores) for i in range(len(batch.rows))]
        values = _as_list(function, answer, len(batch.completions))
        return [self._value(function, v, i, outcomes) for i, v in enumerate(values)]

    def _sample(self, function: WeightedReward, batch: _Batch, i: int, outcomes: Counter[str], scores: Scores) -> float:
        part = batch.part(i)
        try:
            answer = self._call(function, part, one=True)
        except Timeout:
            return self._failed(function, batch, i, "timeout", "", outcomes, scores)
        except Raised as error:
            return self._failed(function, batch, i, "error", str(error), outcomes, scores)
        except Exception as error:
            return self._failed(function, batch, i, "error", f"{type(error).__name__}: {error}", outcomes, scores)
        value = answer if function.per_sample else _as_list(function, answer, 1)[0]
        return self._value(function, value, i, outcomes)

    def _failed(
        self,
        function: WeightedReward,
        batch: _Batch,
        i: int,
        kind: str,
        what: str,
        outcomes: Counter[str],
        scores: Scores,
    ) -> float:
        said = f"timed out after {function.timeout:g} s" if kind == "timeout" else f"raised {what}"
        text = (
            f"reward function '{function.name}' {said} on sample {i}: prompt {_excerpt(batch.prompts[i])}, "
            f"completion {_excerpt(batch.completions[i])}"
        )
        if function.on_error == "fail":
            raise RewardError(text, hint="mend the function, or set its on_error to 'none' or 'zero'")
        if not outcomes[kind]:
            scores.errors.append(text)
        outcomes[kind] += 1
        return 0.0 if function.on_error == "zero" else math.nan

    def _value(self, function: WeightedReward, value: Any, i: int, outcomes: Counter[str]) -> float:
        if value is None:
            outcomes["none"] += 1
            return math.nan
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, bool | int | float) and math.isfinite(number):
            outcomes["value"] += 1
            return float(number)
        raise RewardError(
            f"reward function '{function.name}' gave {value!r} for sample {i}",
            hint="a reward is a finite number, or None",
        )


def _as_list(function: WeightedReward, answer: Any, count: int) -> list[Any]:
    values = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"reward function '{function.name}' gave {type(answer).__name__} {_excerpt(answer)}, not a list",
            hint="give one number (or None) a completion",
        )
    if len(values) != count:
        raise RewardError(
            f"reward function '{function.name}' gave {len(values)} values for {count} completions",
            hint="give one number (or None) a completion",
        )
    return list(values)


async def _await(value: Any) -> Any:
    return await value


def _excerpt(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
