"""Layers laid on top of each other: slots hold pieces by name, everything else is a plain value with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie import registry
from coterie.errors import RecipeError, did_you_mean
from coterie.layers import Layer, leaves
from coterie.paths import absolute
from coterie.pieces import BoundPiece
from coterie.schedules import looks_like_schedule
from coterie.sections import DEFAULTS, LEAVES, SECTIONS

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
CHAIN = {
    "rewards.shaping": "shaping",
    "credit.modifiers": "modifier",
    "selection.filters": "filter",
    "selection.weights": "selection",
    "objective.terms": "term",
}
SOURCES = ("name", "init", "flow")
"""Where a model comes from; one of them."""


@dataclass
class Ref:
    """A piece by name, with the settings that were written and where."""

    slug: str
    origin: str
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def bind(self, kind: str, slot: str) -> BoundPiece:
        piece = registry.get(kind, self.slug, where=f"{self.origin} ({slot})")
        bound = piece.bind(
            {k: absolute(v) for k, (v, _) in self.settings.items()},
            where=f"{self.origin} ({slot})",
            origins={k: f"{origin} ({slot})" for k, (_, origin) in self.settings.items()},
        )
        bound.name = absolute(self.slug) if ".py:" in self.slug else piece.slug
        return bound


class Merge:
    """The merge of layers: slots hold Refs, everything else is a plain value with its origin."""

    def __init__(self) -> None:
        self.single: dict[str, Ref | None] = {}
        self.chain: dict[str, list[Ref]] = {slot: [] for slot in CHAIN}
        self.values: dict[tuple[str, ...], tuple[Any, str]] = {}
        self.conflicts: dict[str, tuple[Any, str, Any, str]] = {}
        """Setting -> first value, its method, second value, its method."""
        self.alternatives: dict[tuple[str, str], Ref] = {}
        """What a method wanted in a slot that another had taken, for the case that the user chooses it."""
        self.stated: dict[str, str] = {}
        """Settings that the user wrote, and slots filled or set something of, with the place; not those of methods."""
        self.origins: dict[str, str] = {}
        """Where plain values were written, by key, those inside the model's mapping too."""

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
                tree = value if isinstance(value, Mapping) else {}
                self.origins[key] = where
                self.origins |= {".".join(p): layer.where(p) for p, _ in leaves(tree, frozenset(), path)}
                old = self.values.get(path, ({}, where))[0] or {}
                self.values[path] = (_merge_models(old, {"name": value} if isinstance(value, str) else value), where)
            elif _is_section(path, where):
                if value is not None and value != {}:  # `rollout:` with every line commented out says nothing
                    raise RecipeError(
                        f"'{key}' is a section of settings, got {value!r}",
                        where=where,
                        hint=f"{key}.NAME=0.5"
                        if path == ("rewards", "weights")
                        else f"its settings: {', '.join(SECTIONS[path[0]])}",
                    )
            else:
                if claims is None or self._claim(claims, key, value, layer.origin):
                    self.values[path] = (value, where)
                    self.origins[key] = where
                if claims is None and layer is not DEFAULTS:
                    self.stated[key] = where
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
        if claims is None and layer is not DEFAULTS:
            self.stated[key] = where
        old = self.single.get(key)
        slug, settings = _split(SINGLE[key], value, where, key, old.slug if old is not None else None)
        if key == "task" and slug is not None and is_data(slug):
            slug, settings = "jsonl", {"path": slug, **settings}
        if value is None:
            self.single[key] = None
            self.conflicts.pop(key, None)
            self.stated.pop(key, None)
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
            known = any(p.slug in (slug, slug.replace("-", "_")) for p in registry.all_pieces(kind))
            if known and current is not None and slug != current and looks_like_schedule(settings):
                known = slug not in registry.get(kind, current).settings  # a piece that is named like a setting of this
            if known or current is None or slug not in registry.get(kind, current).settings:
                return slug, settings or {}
        if current is not None:
            return None, value
    raise RecipeError(
        f"'{key}' names a piece, got {value!r}",
        where=where,
        hint=f"{key}: NAME, or {key}: {{NAME: {{setting: value}}}}",
    )


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
