"""Reward functions: TRL's signature f(completions, **columns) -> list[float | None], with a weight and a policy."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from coterie.errors import RecipeError, RewardError, did_you_mean

OnError = Literal["fail", "none", "zero"]
FILE_MODULE = "coterie_rewards_"
"""Prefix of the modules that users' files become."""
VERIFIER_TIMEOUT = 10.0
"""Seconds a sample for verifiers that may hang."""


@dataclass(frozen=True)
class WeightedReward:
    """A reward function and how it is treated.

    `timeout` (seconds a call) runs it in a process that can be killed. `on_error` says what becomes of a sample whose
    grading raised or timed out: the run fails, the sample has no reward from it, or it has zero. `per_sample` functions
    take (completion, row) and answer for one sample.
    """

    fn: Callable[..., Any]
    name: str
    weight: float = 1.0
    timeout: float | None = None
    on_error: OnError = "fail"
    per_sample: bool = False


class Verdict:
    """A verifier with its settings and the column its reference answer is in. Called with (completion, row)."""

    def __init__(self, verifier: Callable[..., Any], answer: str, settings: Mapping[str, Any]) -> None:
        self.verifier, self.answer, self.settings = verifier, answer, dict(settings)

    def __call__(self, completion: str, row: Mapping[str, Any]) -> Any:
        return self.verifier(completion, str(row[self.answer]), **self.settings)


def verifier_reward(spec: str | Mapping[str, Any], answer: str) -> WeightedReward:
    """A registered verifier, by slug or {slug: settings}, against the reference in column `answer`."""
    from coterie import pieces

    slug, settings = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
    bound = pieces.get("verifier", slug).bind(settings or {})
    may_hang = getattr(bound.piece.fn, "may_hang", False)
    return WeightedReward(
        Verdict(bound.piece.fn, answer, bound.at(0)),
        slug,
        timeout=VERIFIER_TIMEOUT if may_hang else None,
        on_error="none" if may_hang else "fail",
        per_sample=True,
    )


def rewards_of(task: Any, written: Sequence[Any], section: Any) -> tuple[list[WeightedReward], dict[str, float]]:
    """The reward functions of a run and their weights: those written in the recipe, else the task's own.

    Each is a callable, 'file.py:name', 'package.module:name', a verifier's slug, or a mapping with `fn` and any of
    name, weight, timeout, on_error.
    """
    found = [_read(item, section) for item in written] or list(task.rewards)
    if not found:
        raise RecipeError(
            f"task '{task.name}' comes without a reward, and none is named",
            hint="rewards.functions=[my_rewards.py:score], --reward my_rewards.py:score, or a verifier for the task",
        )
    names = [f.name for f in found]
    if len(set(names)) != len(names):
        raise RecipeError(f"two reward functions have one name: {', '.join(names)}", hint="give one a 'name'")
    for name in section.weights:
        if name not in names:
            raise RecipeError(
                f"rewards.weights names '{name}', which is no reward here", hint=did_you_mean(name, names)
            )
    return found, {f.name: section.weights.get(f.name, f.weight) for f in found}


def _read(item: Any, section: Any) -> WeightedReward:
    options: dict[str, Any] = {}
    if isinstance(item, WeightedReward):
        return item
    if isinstance(item, Mapping):
        options = dict(item)
        unknown = set(options) - {"fn", "name", "weight", "timeout", "on_error", "answer"}
        if unknown or "fn" not in options:
            raise RecipeError(
                f"a reward function is written {{fn: …, weight: …}}, got {dict(item)!r}",
                hint=did_you_mean(next(iter(unknown), "fn"), ["fn", "name", "weight", "timeout", "on_error", "answer"]),
            )
        item = options.pop("fn")
    if isinstance(item, str) and ":" not in item:
        base = verifier_reward(item, options.pop("answer", "answer"))
    else:
        fn = resolve(item) if isinstance(item, str) else item
        if not callable(fn):
            raise RewardError(
                f"{item!r} is not a function", hint="a reward is f(completions, **columns) -> list of float"
            )
        base = WeightedReward(fn, getattr(fn, "__name__", type(fn).__name__))
        base = replace(base, timeout=section.timeout, on_error=section.on_error or "fail")
    if options.get("on_error", "fail") not in ("fail", "none", "zero"):
        raise RecipeError(f"on_error is fail, none or zero, got {options['on_error']!r}")
    return replace(base, **options)


def resolve(reference: str) -> Callable[..., Any]:
    """'file.py:name' or 'package.module:name' -> the function. Only what the user names is imported."""
    source, _, name = reference.rpartition(":")
    if source.endswith(".py"):
        module = _load_file(source)
    else:
        try:
            module = importlib.import_module(source)
        except ImportError as error:
            raise RewardError(
                f"cannot import '{source}': {error}", where=reference, hint="file.py:name works too"
            ) from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            functions = [n for n, v in vars(module).items() if inspect.isfunction(v)]
            raise RewardError(f"'{source}' has no '{part}'", where=reference, hint=did_you_mean(part, functions))
        found = getattr(found, part)
    if not callable(found):
        raise RewardError(f"'{name}' in '{source}' is not a function", where=reference)
    return found


def _load_file(source: str) -> Any:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise RewardError(f"no such file: {source}", hint=did_you_mean(path.name, near) if near else "check the path")
    name = f"{FILE_MODULE}{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RewardError(f"importing {source} raised {type(error).__name__}: {error}", hint="mend the file") from error
    return module
