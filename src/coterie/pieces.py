"""Pieces: plain functions that name the columns they read.

Positional parameters are columns; keyword-only parameters are settings. The signature is the schema: it validates YAML
and `key=value` arguments, completes the command line and writes the docs page. Used alone, a piece is an ordinary
tensor function. A piece with memory is a small class whose `__init__` takes the settings (kept as attributes of the
same name) and whose `__call__` takes the columns, with `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from coterie import columns as vocabulary
from coterie.errors import RecipeError, did_you_mean, plainly
from coterie.schedules import Schedule, looks_like_schedule, resolve
from coterie.user_files import blamed

# kind -> (package its files live in, column it writes or None)
KINDS: dict[str, tuple[str, str | None]] = {
    "curriculum": ("coterie.curriculum", None),
    "strategy": ("coterie.rollout.strategies", None),
    "sampler": ("coterie.rollout.samplers", None),
    "task": ("coterie.tasks", None),
    "verifier": ("coterie.rewards.verifiers", None),
    "scheme": ("coterie.rewards.pairwise", None),
    "shaping": ("coterie.rewards.shaping", "rewards"),
    "baseline": ("coterie.credit", "advantages"),
    "modifier": ("coterie.credit", "advantages"),
    "filter": ("coterie.selection", "weights"),
    "selection": ("coterie.selection", "weights"),
    "ratio": ("coterie.objectives.ratios", "ratio"),
    "trust_region": ("coterie.objectives.trust_regions", None),
    "loss": ("coterie.objectives.losses", None),
    "term": ("coterie.objectives.terms", None),
    "imitation": ("coterie.objectives.imitations", None),
    "aggregation": ("coterie.objectives.aggregations", None),
    "optimizer": ("coterie.optim", None),
}
_NO_TABLE = {"curriculum", "strategy", "sampler", "task", "verifier", "scheme", "optimizer"}
TABLE_KINDS = frozenset(k for k in KINDS if k not in _NO_TABLE)
FIXED_KINDS = frozenset({"task", "verifier", "scheme"})
"""Kinds that are made once a run: their settings cannot move with the step."""
_OUTPUT_SHAPES = ("B", "B T")


@dataclass(frozen=True)
class Setting:
    """One keyword-only parameter of a piece."""

    name: str
    annotation: Any
    default: Any
    required: bool

    @property
    def numeric(self) -> bool:
        parts = typing.get_args(self.annotation) or (self.annotation,)
        return (float in parts or int in parts) and bool not in parts

    @property
    def type_text(self) -> str:
        if typing.get_origin(self.annotation) is typing.Literal:
            return " | ".join(str(a) for a in typing.get_args(self.annotation))
        return getattr(self.annotation, "__name__", None) or str(self.annotation).replace("typing.", "")

    def at(self, value: Any, step: int) -> Any:
        """A validated value at a step; a schedule of whole numbers is rounded."""
        now = resolve(value, step)
        whole = isinstance(value, Schedule) and float not in (typing.get_args(self.annotation) or (self.annotation,))
        return round(now) if whole else now

    def validate(self, value: Any) -> Any:
        if isinstance(value, Schedule):
            return value
        if self.numeric and looks_like_schedule(value):
            return Schedule.model_validate(value)
        return self._adapter.validate_python(value)

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)


@dataclass(frozen=True)
class Piece:
    """A registered piece: what it reads, what may be set, what it writes."""

    kind: str
    slug: str
    fn: Callable[..., Any]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    settings: dict[str, Setting]
    paper: str | None
    writes: str | None
    stateful: bool
    shape: str | None
    whole_groups: bool
    min_group: int
    zero_without_advantage: bool
    decisions: str | None
    doc: str
    summary: str
    module: str = field(default="")

    def bind(
        self, values: Mapping[str, Any], *, where: str = "", origins: Mapping[str, str] | None = None
    ) -> BoundPiece:
        """Validate settings against the signature. Errors name the key, the nearest key and the expected type.

        `where` the piece was named and `origins` where each setting was written are for those errors.
        """
        place = where or f"{self.kind} '{self.slug}'"
        written = origins or {}
        bound = {}
        for name, value in values.items():
            setting = self.settings.get(name)
            if setting is None:
                raise RecipeError(
                    f"{self.kind} '{self.slug}' has no setting '{name}'",
                    where=written.get(name, place),
                    hint=did_you_mean(name, self.settings) if self.settings else "it has no settings",
                )
            try:
                bound[name] = setting.validate(value)
            except ValidationError as error:
                problem = error.errors()[0]
                raise RecipeError(
                    f"'{name}' of {self.kind} '{self.slug}' expects {setting.type_text}, got {value!r}",
                    where=written.get(name, place),
                    hint=": ".join([*map(str, problem["loc"]), plainly(problem)]),
                ) from None
            if self.kind in FIXED_KINDS and isinstance(bound[name], Schedule):
                raise RecipeError(
                    f"'{name}' of {self.kind} '{self.slug}' is read once, so it takes no schedule",
                    where=written.get(name, place),
                    hint=f"give one {setting.type_text}",
                )
        for name, setting in self.settings.items():
            if setting.required and name not in bound:
                raise RecipeError(
                    f"{self.kind} '{self.slug}' needs the setting '{name}' ({setting.type_text})", where=place
                )
        return BoundPiece(self, bound)


class BoundPiece:
    """A piece with its settings chosen; a stateful one is instantiated once, here."""

    def __init__(self, piece: Piece, settings: dict[str, Any]) -> None:
        self.piece = piece
        self.name = piece.slug
        """How a recipe names it: its slug, or file.py:name."""
        self.settings = {n: s.default for n, s in piece.settings.items() if not s.required} | settings
        self.instance: Any = piece.fn(**self.at(0)) if piece.stateful else None

    def at(self, step: int) -> dict[str, Any]:
        return {name: self.piece.settings[name].at(value, step) for name, value in self.settings.items()}

    def argument(self, name: str, step: int) -> Any:
        """What it says of a column that depends on it: its setting, or the attribute of a piece with memory."""
        settings = self.at(step)
        if self.instance is None:
            return settings[name]
        for setting, value in settings.items():
            setattr(self.instance, setting, value)
        return getattr(self.instance, name)

    def __call__(self, table: Mapping[str, Any], step: int = 0) -> Any:
        """Run on a table of columns: required ones must be there, optional ones are passed when they are."""
        piece = self.piece
        columns = {name: table[name] for name in piece.required}
        columns |= {name: table[name] if name in table else None for name in piece.optional}
        if self.instance is not None:
            for name, value in self.at(step).items():
                setattr(self.instance, name, value)
            with blamed(piece.module, f"{piece.kind} '{piece.slug}'"):
                return _checked(piece, self.instance, columns, {})
        with blamed(piece.module, f"{piece.kind} '{piece.slug}'"):
            return _checked(piece, piece.fn, columns, self.at(step))

    def state_dict(self) -> dict[str, Any]:
        return self.instance.state_dict() if self.instance is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.instance is not None:
            self.instance.load_state_dict(state)

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
        return f"{self.piece.slug}({inside})"


def _checked(piece: Piece, fn: Callable[..., Any], columns: dict[str, Any], settings: dict[str, Any]) -> Any:
    if piece.kind not in TABLE_KINDS:
        return fn(**columns, **settings)
    reader = f"{piece.kind} '{piece.slug}'"
    dims: dict[str, int] = {}
    for name, value in columns.items():
        if value is not None:
            vocabulary.check(name, value, dims, reader=reader)
    result = fn(**columns, **settings)
    vocabulary._check_tensor("its result", result, _OUTPUT_SHAPES, dims, reader)
    return result


REGISTERED: dict[tuple[str, str], Piece] = {}
"""Every piece that was declared, by kind and slug; `coterie.registry` looks them up."""


def _read_signature(fn: Callable[..., Any]) -> tuple[list[str], list[str], dict[str, Setting]]:
    hints = typing.get_type_hints(fn)
    required: list[str] = []
    optional: list[str] = []
    settings: dict[str, Setting] = {}
    for name, p in inspect.signature(fn).parameters.items():
        if name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY:
            needed = p.default is p.empty
            settings[name] = Setting(name, hints.get(name, Any), None if needed else p.default, needed)
        elif p.kind is p.POSITIONAL_OR_KEYWORD or p.kind is p.POSITIONAL_ONLY:
            (required if p.default is p.empty else optional).append(name)
        else:
            raise TypeError(f"{fn.__qualname__}: a piece takes columns and keyword-only settings, not *{name}")
    return required, optional, settings


def declare(
    kind: str,
    *,
    paper: str | None = None,
    writes: str | None = None,
    shape: str | None = None,
    whole_groups: bool = False,
    min_group: int = 1,
    zero_without_advantage: bool = False,
    decisions: str | None = None,
    slug: str | None = None,
) -> Callable[[Any], Any]:
    """A decorator that makes a piece of a function or a stateful class, which can still be called on its own.

    `paper`: arXiv id. `writes`: column it returns, where not its kind's. `shape`: "B" or "B T", where it always returns
    that. `whole_groups`: never split a group. `min_group`: the smallest group it can learn from.
    `zero_without_advantage`: an objective whose value and gradient are 0 where the advantage is, so that groups without
    a signal need not be run through the model. `decisions`: what a strategy's decisions must be ("tokens" or "denoising
    steps"); None, it does with any.
    """

    def register(obj: Any) -> Any:
        stateful = inspect.isclass(obj)
        required, optional, settings = _read(obj)
        own = kind
        if kind == "credit":
            own = "modifier" if "advantages" in required else "baseline"
        if own in TABLE_KINDS:
            unknown = [c for c in (*required, *optional) if c not in vocabulary.COLUMNS]
            if unknown:
                raise RecipeError(
                    f"{own} '{obj.__name__}' reads column '{unknown[0]}', which is not in the vocabulary",
                    hint=did_you_mean(unknown[0], vocabulary.COLUMNS) + "; settings are keyword-only (after *)",
                )
        doc = inspect.getdoc(obj) or ""
        name = slug or (obj.__module__.rsplit(".", 1)[-1] if stateful else obj.__name__)
        piece = Piece(
            own, name.replace("_", "-") if own == "task" else name, obj, tuple(required), tuple(optional), settings,
            paper, writes or KINDS[own][1], stateful, shape, whole_groups, min_group, zero_without_advantage,
            decisions, doc, doc.split("\n")[0], obj.__module__,
        )  # fmt: skip
        known = REGISTERED.get((own, piece.slug))
        if known is not None and known.module != piece.module:
            raise RecipeError(
                f"{own} '{piece.slug}' is defined twice, in {known.module} and in {piece.module}", hint="rename one"
            )
        REGISTERED[own, piece.slug] = piece
        called = obj if stateful or own not in TABLE_KINDS else _checking(piece)
        called.piece = piece
        return called

    return register


def _checking(piece: Piece) -> Any:
    """A piece's function that checks the columns it is given and what it returns."""

    @functools.wraps(piece.fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        names = [*piece.required, *piece.optional]
        columns: dict[str, Any] = dict(zip(names, args, strict=False))
        named = {k: kwargs.pop(k) for k in list(kwargs) if k in names}
        twice = columns.keys() & named.keys()
        columns |= named
        if twice or len(args) > len(names) or any(c not in columns for c in piece.required):
            inspect.signature(piece.fn).bind(*args, **named, **kwargs)  # Python's own message
        return _checked(piece, piece.fn, columns, kwargs)

    return call


def _read(obj: Any) -> tuple[list[str], list[str], dict[str, Setting]]:
    """Required columns, optional columns and settings of a function or a stateful class."""
    if not inspect.isclass(obj):
        return _read_signature(obj)
    required, optional, none = _read_signature(obj.__call__)
    if none:
        raise TypeError(f"{obj.__name__}: settings belong to __init__, columns to __call__")
    return required, optional, _read_signature(obj.__init__)[2] if obj.__init__ is not object.__init__ else {}


credit = functools.partial(declare, "credit")
shaping = functools.partial(declare, "shaping")
filter = functools.partial(declare, "filter")
selection = functools.partial(declare, "selection")
ratio = functools.partial(declare, "ratio")
trust_region = functools.partial(declare, "trust_region")
loss = functools.partial(declare, "loss")
term = functools.partial(declare, "term")
imitation = functools.partial(declare, "imitation")
aggregation = functools.partial(declare, "aggregation")
curriculum = functools.partial(declare, "curriculum")
strategy = functools.partial(declare, "strategy")
sampler = functools.partial(declare, "sampler")
task = functools.partial(declare, "task")
verifier = functools.partial(declare, "verifier")
scheme = functools.partial(declare, "scheme")
optimizer = functools.partial(declare, "optimizer")
