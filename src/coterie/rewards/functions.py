"""Reward functions: TRL's signature f(completions, **columns) -> list[float | None], with a weight and a policy."""

from __future__ import annotations

import hashlib
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
OPTIONS = ("fn", "name", "weight", "timeout", "on_error", "answer", "settings")
"""What a reward function may be given in a recipe."""


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
    per_step: bool = False
    """Whether it answers a number for each step of a completion, as process functions do."""
    per_pair: bool = False
    """Whether it is a judge of pairs of completions."""


class Verdict:
    """A verifier with its settings and the column its reference answer is in. Called with (completion, row).

    Attributes that a verifier may have: `may_hang`, it runs where it can be killed; `prepare()`, called when it arrives
    in its process, before the clock starts (slow imports); `answer(completion) -> str`, what majority votes compare.
    """

    def __init__(self, verifier: Callable[..., Any], answer: str, settings: Mapping[str, Any]) -> None:
        self.verifier, self.answer, self.settings = verifier, answer, dict(settings)

    def __call__(self, completion: str, row: Mapping[str, Any]) -> Any:
        return self.verifier(completion, str(row[self.answer]), **self.settings)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        prepare = getattr(self.verifier, "prepare", None)
        if prepare is not None:
            prepare()


def verifier_reward(spec: str | Mapping[str, Any], answer: str) -> WeightedReward:
    """A registered verifier, by slug or {slug: settings}, against the reference in column `answer`."""
    from coterie import registry

    if not isinstance(spec, str) and len(spec) != 1:
        raise RecipeError(f"a verifier is written name or {{name: {{settings}}}}, got {dict(spec)!r}")
    slug, settings = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
    bound = registry.get("verifier", slug).bind(settings or {})
    may_hang = getattr(bound.piece.fn, "may_hang", False)
    return WeightedReward(
        Verdict(bound.piece.fn, answer, bound.at(0)),
        slug,
        timeout=VERIFIER_TIMEOUT if may_hang else None,
        on_error="none" if may_hang else "fail",
        per_sample=True,
    )


def rewards_of(
    task: Any, written: Sequence[Any], section: Any, judge: WeightedReward | None = None
) -> tuple[list[WeightedReward], dict[str, float]]:
    """The reward functions of a run and their weights: those written in the recipe, else the task's own.

    A pairwise judge is a written reward too: where only that is, the task's own are not used.

    Each is a callable, 'file.py:name', 'package.module:name', a verifier's slug, or a mapping with `fn` and any of
    name, weight, timeout, on_error, and for a verifier the `answer` column. section: weights by name; timeout and
    on_error of the user's functions.
    """
    judges = [] if judge is None else [judge]
    found = [read(item, section) for item in written] or ([] if judges else list(task.rewards))
    if not found and not judges:
        raise RecipeError(
            f"task '{task.name}' comes without a reward, and none is named",
            hint="rewards.functions=[my_rewards.py:score], --reward my_rewards.py:score, or a verifier for the task",
        )
    names = [f.name for f in [*found, *judges]]
    if len(set(names)) != len(names):
        raise RecipeError(f"two reward functions have one name: {', '.join(names)}", hint="give one a 'name'")
    for name in section.weights:
        if name not in names:
            raise RecipeError(
                f"rewards.weights names '{name}', which is no reward here", hint=did_you_mean(name, names)
            )
    for function in found:
        if isinstance(function.fn, Verdict) and function.fn.answer not in task.train[0]:
            raise RecipeError(
                f"verifier '{function.name}' compares with column '{function.fn.answer}', which task '{task.name}' "
                "does not have",
                hint=f"{did_you_mean(function.fn.answer, task.train[0])}; {{fn: {function.name}, answer: COLUMN}}",
            )
    return found, {f.name: section.weights.get(f.name, f.weight) for f in [*found, *judges]}


def read(item: Any, section: Any) -> WeightedReward:
    """A reward function as it is written in a recipe, with the section's timeout and on_error."""
    options: dict[str, Any] = {}
    if isinstance(item, WeightedReward):
        return item
    if isinstance(item, Mapping):
        options = dict(item)
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown or "fn" not in options:
            raise RecipeError(
                f"a reward function is written {{fn: …, weight: …}}, got {dict(item)!r}",
                hint=did_you_mean(unknown[0], OPTIONS) if unknown else "name the function: fn: my_rewards.py:score",
            )
        item = options.pop("fn")
    settings = options.pop("settings", None)
    if isinstance(item, Mapping) or (isinstance(item, str) and ":" not in item and not item.endswith(".py")):
        if settings is not None:
            raise RecipeError(f"'settings' is for classes; a verifier is written {{fn: {{{item}: {{…}}}}}}")
        base = verifier_reward(item, options.pop("answer", "answer"))
    else:
        fn = resolve(item)
        named = item.replace(":", ".").rpartition(".")[2] if isinstance(item, str) else None
        name = str(named or getattr(fn, "__name__", type(fn).__name__))
        base = WeightedReward(_own(fn, settings, name), name)
        base = replace(base, timeout=section.timeout, on_error=section.on_error or "fail")
    return replace(base, **_checked(base.name, options))


def _own(fn: Any, settings: Any, name: str) -> Any:
    """The function; of a class an object that this run alone has."""
    from coterie.rewards.remembering import make, memory_of

    if inspect.isclass(fn):
        if not isinstance(settings or {}, Mapping):
            raise RecipeError(f"'settings' is a mapping, got {settings!r}", where=f"reward function '{name}'")
        return make(fn, settings or {}, name)
    if settings is not None:
        raise RecipeError("'settings' is for classes, and this is none", where=f"reward function '{name}'")
    if memory_of(fn, name) is not None:
        raise RecipeError(
            f"reward function '{name}' has memory, and it is one object for every run that names it",
            hint="name its class: each run makes an object of its own, {fn: file.py:Class, settings: {…}}",
        )
    return fn


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    problem = None
    weight, timeout = options.get("weight", 1.0), options.get("timeout")
    if "answer" in options:
        problem = "'answer' is for verifiers: a function gets every column of the data by name"
    elif options.get("on_error", "fail") not in ("fail", "none", "zero"):
        problem = f"on_error is fail, none or zero, got {options['on_error']!r}"
    elif isinstance(weight, bool) or not isinstance(weight, int | float):
        problem = f"weight is a number, got {weight!r}"
    elif timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0):
        problem = f"timeout is a number of seconds, got {timeout!r}"
    elif not isinstance(options.get("name", ""), str):
        problem = f"name is text, got {options['name']!r}"
    if problem:
        raise RecipeError(problem, where=f"reward function '{name}'")
    return options


def resolve(reference: Any) -> Callable[..., Any]:
    """A callable as it is; 'file.py:name' or 'package.module:name' -> the function named. Only that is imported."""
    if not isinstance(reference, str):
        if not callable(reference):
            raise RewardError(
                f"{reference!r} is not a function", hint="a reward is f(completions, **columns) -> list of float"
            )
        return reference
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise RewardError(f"'{reference}' names no function", hint="file.py:name or package.module:name")
    module = _load_file(source) if source.endswith(".py") else _import(source)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise RewardError(f"'{source}' has no '{part}'", where=reference, hint=did_you_mean(part, functions))
        found = getattr(found, part)
    if not callable(found):
        raise RewardError(f"'{name}' in '{source}' is not a function", where=reference)
    return found


def _import(source: str) -> Any:
    try:
        return importlib.import_module(source)
    except (Exception, SystemExit) as error:  # the user's code runs here
        raise RewardError(
            f"importing '{source}' raised {type(error).__name__}: {error}", hint="mend it; file.py:name works too"
        ) from error


def _load_file(source: str) -> Any:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise RewardError(f"no such file: {source}", hint=did_you_mean(path.name, near) if near else "check the path")
    name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code runs here
        del sys.modules[name]
        raise RewardError(f"importing {source} raised {type(error).__name__}: {error}", hint="mend the file") from error
    return module
