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

from coterie import methods, pieces
from coterie.errors import RecipeError, did_you_mean
from coterie.layers import Layer, from_dotted, leaves, read_override, read_yaml_file
from coterie.pieces import BoundPiece
from coterie.schedules import looks_like_schedule
from coterie.sections import DEFAULTS, LEAVES, SECTIONS, Settings

SINGLE = {
    "task": "task",
    "draw.curriculum": "curriculum",
    "rollout.strategy": "strategy",
    "rollout.sampler": "sampler",
    "rewards.pairwise.scheme": "scheme",
    "credit.baseline": "baseline",
    "objective.ratio": "ratio",
    "objective.trust_region": "trust_region",
    "objective.loss": "loss",
    "objective.aggregation": "aggregation",
    "objective.imitation": "imitation",
    "optimizer": "optimizer",
}
OWN = ("model", "method", "optimizer", "rewards", "credit", "selection", "objective", "update", "reference", "teacher")
"""Sections that each of several policies may have of its own."""
SOURCES = ("name", "init", "flow")
"""Where a model comes from; one of them."""
CHAIN = {
    "rewards.shaping": "shaping",
    "credit.modifiers": "modifier",
    "selection.filters": "filter",
    "selection.weights": "selection",
    "objective.terms": "term",
}


@dataclass
class Ref:
    """A piece by name, with the settings that were written and where."""

    slug: str
    origin: str
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def bind(self, kind: str, slot: str) -> BoundPiece:
        piece = pieces.get(kind, self.slug, where=f"{self.origin} ({slot})")
        bound = piece.bind(
            {k: absolute(v) for k, (v, _) in self.settings.items()},
            where=f"{self.origin} ({slot})",
            origins={k: f"{origin} ({slot})" for k, (_, origin) in self.settings.items()},
        )
        bound.name = absolute(self.slug) if ".py:" in self.slug else piece.slug
        return bound


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
        out: dict[str, Any] = {"method": self.method, **self.settings.model_dump(mode="json", exclude_none=True)}
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


def absolute(value: Any) -> Any:
    """A local path made absolute, 'file.py:name' too, so that a run can be resumed from anywhere; else the value."""
    if not isinstance(value, str) or not value:
        return value
    file, colon, name = value.rpartition(":") if ".py:" in value else (value, "", "")
    looks_local = "/" in file or Path(file).suffix
    return str(Path(file).resolve()) + colon + name if looks_local and Path(file).exists() else value


def _absolute_model(written: Any) -> Any:
    """A model as written, its folder made absolute."""
    if isinstance(written, Mapping):
        return {**written, "name": _absolute_model(written["name"])} if "name" in written else written
    return str(Path(written).resolve()) if isinstance(written, str) and written and Path(written).is_dir() else written


def _absolute_function(function: Any) -> Any:
    return {**function, "fn": absolute(function.get("fn"))} if isinstance(function, Mapping) else absolute(function)


def _absolute_data(name: Any) -> Any:
    """A path or glob made absolute where it leads somewhere, else the name (of a dataset)."""
    if not isinstance(name, str | Path):
        return name
    path = Path(name).expanduser()
    local = path.exists() or path.is_absolute() or any(c in str(name) for c in "*?[")
    return str(path.absolute()) if local else str(name)


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


class _Merge:
    """The merge of layers: slots hold Refs, everything else is a plain value with its origin."""

    def __init__(self) -> None:
        self.single: dict[str, Ref | None] = {}
        self.chain: dict[str, list[Ref]] = {slot: [] for slot in CHAIN}
        self.values: dict[tuple[str, ...], tuple[Any, str]] = {}
        self.conflicts: dict[str, tuple[Any, str, Any, str]] = {}
        """Setting -> first value, its method, second value, its method."""
        self.alternatives: dict[tuple[str, str], Ref] = {}
        """What a method wanted in a slot that another had taken, for the case that the user chooses it."""

    def add(self, layer: Layer, *, method: bool = False, claims: dict[str, tuple[Any, str]] | None = None) -> None:
        """Lay a layer on top. Methods append to chains and record who claimed what; other layers replace."""
        for path, value in leaves(layer.tree, LEAVES):
            key, where = ".".join(path), layer.where(path)
            if key in SINGLE:
                self._add_single(key, value, where, layer, path, claims)
            elif key in CHAIN:
                self._add_chain(key, value, where, layer, path, method, claims)
            elif key == "model":
                if not isinstance(value, str | Mapping | None):
                    raise RecipeError(
                        f"'model' is a path, a hub id or a mapping, got {value!r}", where=where, hint="model: PATH"
                    )
                old = self.values.get(path, ({}, where))[0] or {}
                self.values[path] = (_merge_models(old, {"name": value} if isinstance(value, str) else value), where)
            elif _is_section(path, where):
                if value is not None and value != {}:  # `rollout:` with every line commented out says nothing
                    raise RecipeError(
                        f"'{key}' is a section of settings, got {value!r}",
                        where=where,
                        hint=f"its settings: {', '.join(SECTIONS[path[0]])}",
                    )
            else:
                if claims is None or self._claim(claims, key, value, layer.origin):
                    self.values[path] = (value, where)
                if claims is None:
                    self.conflicts.pop(key, None)

    def _claim(self, claims: dict[str, tuple[Any, str]], key: str, value: Any, origin: str) -> bool:
        if key in claims and claims[key][0] != value:
            first, by = claims[key]
            self.conflicts[key] = (first, by, value, origin)
            return False
        claims.setdefault(key, (value, origin))
        return True

    def _add_single(self, key: str, value: Any, where: str, layer: Layer, path: tuple[str, ...], claims: Any) -> None:
        old = self.single.get(key)
        slug, settings = _split(SINGLE[key], value, where, key, old.slug if old is not None else None)
        if key == "task" and slug is not None and is_data(slug):
            slug, settings = "jsonl", {"path": slug, **settings}
        if value is None:
            self.single[key] = None
            self.conflicts.pop(key, None)
            return
        if slug is None:
            assert old is not None
            ref = old
        elif claims is not None and not self._claim(claims, key, slug, layer.origin):
            ref = self.alternatives.setdefault((key, slug), Ref(slug, where))
            self._add_settings(ref, key, settings, layer, (*path, slug), None)
            return
        else:
            ref = old if old is not None and old.slug == slug else self.alternatives.get((key, slug), Ref(slug, where))
            self.single[key] = ref
        if claims is None and slug is not None:
            for known in [k for k in self.conflicts if k == key or k.startswith(key + ".")]:
                self.conflicts.pop(known)
        self._add_settings(ref, key, settings, layer, (*path, slug) if slug else path, claims)

    def _add_settings(
        self, ref: Ref, key: str, settings: Mapping[str, Any], layer: Layer, path: tuple[str, ...], claims: Any
    ) -> None:
        for name, value in settings.items():
            if claims is None:
                self.conflicts.pop(f"{key}.{name}", None)
            elif not self._claim(claims, f"{key}.{name}", value, layer.origin):
                continue
            ref.settings[name] = (value, layer.where((*path, name)))

    def _add_chain(
        self, key: str, value: Any, where: str, layer: Layer, path: tuple[str, ...], method: bool, claims: Any
    ) -> None:
        edits = isinstance(value, Mapping)
        items = [{k: v} for k, v in value.items()] if edits else value or []
        if not isinstance(items, list):
            items = [items]
        if not edits and not method:
            self.chain[key] = []
        for i, item in enumerate(items):
            slug, settings = _split(CHAIN[key], item, where, key)
            assert slug is not None
            ref = next((r for r in self.chain[key] if r.slug == slug), None)
            if ref is None:
                ref = Ref(slug, where)
                self.chain[key].append(ref)
            inner = (*path, slug) if edits else (*path, str(i), slug)
            self._add_settings(ref, f"{key}.{slug}", settings, layer, inner, claims)


def _merge_models(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of one model on top of another's: a new source (name, init or flow) takes the old one's place."""
    new = new or {}
    out = {k: v for k, v in old.items() if not (k in SOURCES and any(s in new for s in SOURCES) and k not in new)}
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = {**out[key], **value} if both else value
    return out


def is_data(name: str) -> bool:
    """Whether a task is written as a data file or folder, my.jsonl or data/, which is the task jsonl of it."""
    return ".py:" not in name and (name.endswith((".jsonl", ".json", ".parquet", ".csv")) or "/" in name)


def _split(
    kind: str, value: Any, where: str, key: str, current: str | None = None
) -> tuple[str | None, Mapping[str, Any]]:
    """'slug' | {slug: {settings}} | {setting: value} of the `current` piece -> (slug or None, settings)."""
    if value is None:
        return None, {}
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping):
        slug, settings = next(iter(value.items()), ("", None))
        if len(value) == 1 and (settings is None or isinstance(settings, Mapping)):
            known = any(p.slug in (slug, slug.replace("-", "_")) for p in pieces.all_pieces(kind))
            if known and current is not None and slug != current and looks_like_schedule(settings):
                known = slug not in pieces.get(kind, current).settings  # a piece that is named like a setting of this
            if known or current is None or slug not in pieces.get(kind, current).settings:
                return slug, settings or {}
        if current is not None:
            return None, value
    raise RecipeError(
        f"'{key}' names a piece, got {value!r}",
        where=where,
        hint=f"{key}: NAME, or {key}: {{NAME: {{setting: value}}}}",
    )


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
    merge = _Merge()
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
    return _finish(merge, chosen, functions)


def _finish(merge: _Merge, method: str, functions: list[Any]) -> Recipe:
    plain: dict[str, Any] = {}
    for path, (value, _) in merge.values.items():
        node = plain
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    functions = functions or _as_list(plain.get("rewards", {}).get("functions"))
    functions = [_absolute_function(f) for f in functions]
    process = _absolute_function(plain.get("rewards", {}).pop("process", None))
    judge = _absolute_function(plain.get("rewards", {}).pop("pairwise", {}).get("judge"))
    model = plain.get("model") or {}
    if Path(model.get("name") or "").is_dir() and model.get("name"):
        model["name"] = str(Path(model["name"]).resolve())
    if "architecture" in model:
        model["architecture"] = absolute(model["architecture"])
    if "model" in plain.get("teacher", {}):
        plain["teacher"]["model"] = _absolute_model(plain["teacher"]["model"])
    plain.get("rewards", {}).pop("functions", None)
    recorded = _as_list(plain.get("offline", {}).get("rollouts"))
    if recorded:
        plain["offline"]["rollouts"] = [_absolute_data(r) for r in recorded]
    try:
        settings = Settings.model_validate(plain)
    except ValidationError as error:
        raise _first_error(error, merge) from None
    single = {slot: ref.bind(SINGLE[slot], slot) for slot, ref in merge.single.items() if ref is not None}
    if "task" not in single and not recorded:
        raise RecipeError(
            "no task is named", hint="task=countdown, task=my.jsonl, or --task; `coterie tasks` lists them"
        )
    if "objective.loss" in single:
        for slot in ("objective.ratio", "objective.trust_region"):
            single.pop(slot, None)
    chain = {slot: [ref.bind(CHAIN[slot], slot) for ref in refs] for slot, refs in merge.chain.items()}
    return Recipe(settings, single, chain, method, functions, process, judge)


def pieces_of(method: Layer) -> list[tuple[str, BoundPiece]]:
    """The pieces a method names, with its settings, and the slot of each."""
    merge = _Merge()
    merge.add(method, method=True)
    found = [(slot, ref.bind(SINGLE[slot], slot)) for slot, ref in merge.single.items() if ref is not None]
    return found + [(slot, ref.bind(CHAIN[slot], slot)) for slot, refs in merge.chain.items() for ref in refs]


def _as_list(functions: Any) -> list[Any]:
    """Reward functions as written: one, or a list of them."""
    if functions is None:
        return []
    return list(functions) if isinstance(functions, list | tuple) else [functions]


def _is_section(path: tuple[str, ...], where: str) -> bool:
    """Whether the path names a section. Raises RecipeError when it names nothing."""
    known: Any = SECTIONS
    for depth, part in enumerate(path):
        if not isinstance(known, Mapping):
            return False
        if part not in known:
            inside = ".".join(path[:depth])
            raise RecipeError(
                f"unknown key '{'.'.join(path[: depth + 1])}'",
                where=where,
                hint=did_you_mean(part, known) + (f" (in {inside})" if inside else ""),
            )
        known = known[part]
    return isinstance(known, Mapping) or path == ("rewards", "weights")


def _first_error(error: ValidationError, merge: _Merge) -> RecipeError:
    first = error.errors()[0]["loc"]
    problem = max((e for e in error.errors() if e["loc"][:2] == first[:2]), key=lambda e: len(e["loc"]))
    path = tuple(str(p) for p in problem["loc"])
    key, where = next(((p, w) for p, (_, w) in merge.values.items() if p == path[: len(p)]), (path, "recipe"))
    inside = [p for p in path[len(key) :] if p not in ("float", "Schedule")]
    text = ": ".join([".".join(key), *inside, problem["msg"].lower()])
    return RecipeError(f"{text}, got {problem.get('input')!r}", where=where)
