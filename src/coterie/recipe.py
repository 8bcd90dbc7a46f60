"""One Recipe from everything that says something about a run: methods, YAML, `key=value`, Python.

Order, later wins: defaults (plain GRPO), methods left to right, the recipe file, arguments. Two methods that give one
setting two values are an error that says which to choose, unless the file or the arguments choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from coterie import methods
from coterie.errors import RecipeError, did_you_mean, plainly
from coterie.layers import Layer, from_dotted, read_override, read_yaml_file
from coterie.merge import CHAIN, SINGLE, Merge
from coterie.paths import absolute, absolute_data, absolute_function, absolute_model, absolute_place
from coterie.pieces import BoundPiece
from coterie.sections import DEFAULTS, OF_UPDATE, Settings

OWN = ("model", "method", "optimizer", "rewards", "credit", "selection", "objective", "update", "reference", "teacher")
"""Sections that each of several policies may have of its own."""


@dataclass
class Recipe:
    """A fully resolved run: `settings` are the plain values, `bound` the pieces with theirs."""

    settings: Settings
    single: dict[str, BoundPiece]
    chain: dict[str, list[BoundPiece]]
    method: str
    functions: list[Any]
    """Reward functions as written: names, `file.py:name`, mappings with a weight, or Python callables."""
    process: Any = None
    """The function that scores steps, as written: `file.py:name`, a mapping, or a Python callable."""
    judge: Any = None
    """The pairwise judge, written like that too."""
    policies: dict[str, Recipe] = field(default_factory=dict)
    """Where several policies train together: by name, this recipe with the layer that is each one's own."""
    agent: str = ""
    """Of those, whose recipe this is."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where plain settings were written, file and line or argument, by key."""

    def where(self, key: str) -> str | None:
        """Where a setting was written, or what holds it; None for one that nobody wrote."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key)

    def all_bound(self) -> list[tuple[str, BoundPiece]]:
        """Every table piece in the order of the loop, with its slot."""
        order = [
            "rewards.shaping", "selection.filters", "credit.baseline", "credit.modifiers", "selection.weights",
            "objective.ratio", "objective.trust_region", "objective.loss", "objective.terms", "objective.aggregation",
            "objective.imitation",
        ]  # fmt: skip
        out = []
        for slot in order:
            found = self.chain[slot] if slot in CHAIN else [self.single[slot]] if slot in self.single else []
            out += [(slot, b) for b in found]
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain data that makes the same recipe again."""
        out: dict[str, Any] = {
            "method": methods.absolute(self.method),
            **self.settings.model_dump(mode="json", exclude_none=True),
        }
        out["rewards"] = {**out.get("rewards", {}), "functions": [_function_text(f) for f in self.functions]}
        if self.process is not None:
            out["rewards"]["process"] = _function_text(self.process)
        if self.judge is not None:
            out["rewards"]["pairwise"] = {"judge": _function_text(self.judge)}
        for slot in (*SINGLE, *CHAIN):
            if slot in ("rewards.pairwise.scheme", "rollout.sampler") and slot not in self.single:
                continue
            *parents, last = slot.split(".")
            node = out
            for parent in parents:
                node = node.setdefault(parent, {})
            if slot in CHAIN:
                node[last] = [_piece_text(b) for b in self.chain[slot]]
            else:
                node[last] = _piece_text(self.single[slot]) if slot in self.single else None
        if self.policies:
            everything = {name: own.to_dict() for name, own in self.policies.items()}
            out["policies"] = {name: {k: v for k, v in d.items() if k in OWN} for name, d in everything.items()}
        return out

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)


def _piece_text(bound: BoundPiece) -> Any:
    plain = {
        k: v.model_dump(by_alias=True) if hasattr(v, "model_dump") else list(v) if isinstance(v, tuple) else v
        for k, v in bound.settings.items()
    }
    return {bound.name: plain} if plain else bound.name


def _function_text(function: Any) -> Any:
    if callable(function):
        return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    if isinstance(function, Mapping) and callable(function.get("fn")):
        return {**function, "fn": _function_text(function["fn"])}
    return function


def resolve(
    *,
    method: str | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    functions: Sequence[Any] | None = None,
) -> Recipe:
    """Read, merge and validate everything into a Recipe. Raises RecipeError naming file, line and key."""
    user = []
    if file is not None:
        user.append(read_yaml_file(Path(file)))
    user += [from_dotted({key: value}, "arguments") for key, value in (values or {}).items()]
    user += [read_override(text) for text in overrides]
    own = _own_layers(user)
    chosen = _method_of(user)
    chosen = method if method is not None else chosen or "grpo"
    recipe = _merged(chosen, user, _as_list(functions))
    for name, layers in own.items():
        stated = _method_of(layers)
        recipe.policies[name] = _merged(stated or chosen, [*user, *layers], _as_list(functions))
        recipe.policies[name].agent = name
    return recipe


def _method_of(user: Sequence[Layer]) -> str | None:
    """Take the method out of the layers; the last one that names one counts."""
    chosen = None
    for layer in user:
        stated = layer.tree.pop("method", None)
        if not isinstance(stated, str | None):
            raise RecipeError(
                f"'method' is a name, got {stated!r}", where=layer.where(("method",)), hint="method: dapo+kl"
            )
        chosen = stated or chosen
    return chosen


def _own_layers(user: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Take `policies` out of the layers: for each of them what is its own, layer by layer."""
    own: dict[str, list[Layer]] = {}
    for layer in user:
        where = layer.where(("policies",))
        written = layer.tree.pop("policies", None) or {}
        if not isinstance(written, Mapping):
            raise RecipeError(f"'policies' is a mapping by name, got {written!r}", where=where, hint=_POLICIES)
        for name, tree in written.items():
            if not isinstance(tree, Mapping | None):
                raise RecipeError(
                    f"policy '{name}' is a mapping of settings, got {tree!r}", where=where, hint=_POLICIES
                )
            for key in tree or {}:
                if key not in OWN:
                    raise RecipeError(
                        f"'{key}' is no setting of one policy",
                        where=layer.where(("policies", name, key)),
                        hint=f"{did_you_mean(key, OWN)}; the rest is shared by all",
                    )
            lines = {p[2:]: n for p, n in layer.lines.items() if p[:2] == ("policies", name)}
            own.setdefault(name, []).append(Layer(layer.origin, dict(tree or {}), lines))
    return own


_POLICIES = "policies: {alice: {model: PATH}, bob: {model: PATH}}"


def _merged(chosen: str, user: Sequence[Layer], functions: list[Any]) -> Recipe:
    merge = Merge()
    merge.add(DEFAULTS)
    claims: dict[str, tuple[Any, str]] = {}
    for name in methods.names_in(chosen):
        merge.add(methods.load(name).layer, method=True, claims=claims)
    for layer in user:
        merge.add(layer)
    if merge.conflicts:
        told = [f"{key} ({a} in {by}, {b} in {and_by})" for key, (a, by, b, and_by) in merge.conflicts.items()]
        raise RecipeError(
            f"the methods of '{chosen}' disagree on {', '.join(told)}",
            hint="choose by adding, for example, "
            + " ".join(f"{key}={b}" for key, (_, _, b, _) in merge.conflicts.items()),
        )
    _check_one_objective(merge, claims)
    return _finish(merge, chosen, functions)


def _check_one_objective(merge: Merge, claims: Mapping[str, tuple[Any, str]]) -> None:
    """A whole loss takes the place of ratio and trust region: what was said of these must not be lost unnoticed."""
    loss = merge.single.get("objective.loss")
    if loss is None:
        return
    for slot in ("objective.ratio", "objective.trust_region"):
        if slot in merge.stated:
            raise RecipeError(
                f"{slot} is set, and objective.loss={loss.slug} takes the place of ratio and trust region",
                where=merge.stated[slot],
                hint=f"leave {slot} out, or choose it with objective.loss=null",
            )
        if "objective.loss" in merge.stated or merge.single.get(slot) is None:
            continue  # the user chose
        for key, (value, by) in claims.items():
            if key == slot or key.startswith(slot + "."):
                raise RecipeError(
                    f"{by} sets {key}={value}, and objective.loss={loss.slug} of {claims['objective.loss'][1]} takes "
                    "the place of ratio and trust region",
                    hint=f"choose by adding objective.loss={loss.slug} or objective.loss=null",
                )


def _finish(merge: Merge, method: str, functions: list[Any]) -> Recipe:
    plain: dict[str, Any] = {}
    for path, (value, _) in merge.values.items():
        node = plain
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    functions = functions or _as_list(plain.get("rewards", {}).get("functions"))
    functions = [absolute_function(f) for f in functions]
    process = absolute_function(plain.get("rewards", {}).pop("process", None))
    judge = absolute_function(plain.get("rewards", {}).pop("pairwise", {}).get("judge"))
    model = plain.get("model") or {}
    if Path(model.get("name") or "").is_dir() and model.get("name"):
        model["name"] = str(Path(model["name"]).resolve())
    if "architecture" in model:
        model["architecture"] = absolute(model["architecture"])
    if "model" in plain.get("teacher", {}):
        plain["teacher"]["model"] = absolute_model(plain["teacher"]["model"])
    if "apart" in plain:
        plain["apart"]["path"] = absolute_place(plain["apart"].get("path"))
    plain.get("rewards", {}).pop("functions", None)
    recorded = _as_list(plain.get("offline", {}).get("rollouts"))
    if recorded:
        plain["offline"]["rollouts"] = [absolute_data(r) for r in recorded]
    reference = plain.get("reference", {})
    for name, update in OF_UPDATE.items():  # a method's way of moving the reference goes where the user chose another
        if reference.get("update", "frozen") != update and f"reference.{name}" not in merge.stated:
            reference.pop(name, None)
    try:
        settings = Settings.model_validate(plain)
    except ValidationError as error:
        raise _first_error(error, merge) from None
    warm = next((key for key in merge.stated if key.startswith("warm_start.")), None)
    if warm is not None and "warm_start.steps" not in merge.origins:
        raise RecipeError(
            f"{warm} is set, and warm_start.steps is 0: there is no warm start",
            where=merge.stated[warm],
            hint="warm_start.steps=100",
        )
    if settings.offline.revise is not None and not recorded:
        raise RecipeError(
            "offline.revise is for recorded pairs, and none are named",
            where=merge.stated.get("offline.revise"),
            hint="--rollouts pairs.jsonl",
        )
    single = {slot: ref.bind(SINGLE[slot], slot) for slot, ref in merge.single.items() if ref is not None}
    if "task" not in single and not recorded:
        raise RecipeError(
            "no task is named", hint="task=countdown, task=my.jsonl, or --task; `coterie tasks` lists them"
        )
    if "objective.loss" in single:
        for slot in ("objective.ratio", "objective.trust_region"):
            single.pop(slot, None)
    chain = {slot: [ref.bind(CHAIN[slot], slot) for ref in refs] for slot, refs in merge.chain.items()}
    return Recipe(settings, single, chain, method, functions, process, judge, origins=merge.origins)


def pieces_of(method: Layer) -> list[tuple[str, BoundPiece]]:
    """The pieces a method names, with its settings, and the slot of each."""
    merge = Merge()
    merge.add(method, method=True)
    found = [(slot, ref.bind(SINGLE[slot], slot)) for slot, ref in merge.single.items() if ref is not None]
    return found + [(slot, ref.bind(CHAIN[slot], slot)) for slot, refs in merge.chain.items() for ref in refs]


def _as_list(functions: Any) -> list[Any]:
    """Reward functions as written: one, or a list of them."""
    if functions is None:
        return []
    return list(functions) if isinstance(functions, list | tuple) else [functions]


def _first_error(error: ValidationError, merge: Merge) -> RecipeError:
    first = error.errors()[0]["loc"]
    problem = max((e for e in error.errors() if e["loc"][:2] == first[:2]), key=lambda e: len(e["loc"]))
    path = tuple(str(p) for p in problem["loc"])
    key, where = next(((p, w) for p, (_, w) in merge.values.items() if p == path[: len(p)]), (path, "recipe"))
    if problem["type"] == "value_error":  # of settings that do not fit together: it names them itself
        said = [w for p, (_, w) in merge.values.items() if path == p[: len(path)] and ".".join(p) in problem["msg"]]
        return RecipeError(plainly(problem), where=next(iter(said), where))
    inside = [p for p in path[len(key) :] if p not in ("float", "Schedule")]
    text = ": ".join([".".join(key), *inside, plainly(problem)])
    return RecipeError(f"{text}, got {problem.get('input')!r}", where=where)
