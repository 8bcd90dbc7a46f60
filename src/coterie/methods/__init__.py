"""Named methods: small YAML files, one a paper, each a composition of pieces with the paper's settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from coterie.errors import RecipeError, did_you_mean
from coterie.layers import Layer, read_yaml, read_yaml_file

FOLDER = Path(__file__).parent
_FILE = re.compile(r".+?\.ya?ml(?=\+|$)")
KEYS = {"title", "paper", "summary", "formula", "symbols", "when", "metrics", "differences", "recipe"}


@dataclass(frozen=True)
class Method:
    """A named composition and what its page says."""

    slug: str
    title: str
    summary: str
    formula: str
    layer: Layer
    paper: str | None = None
    symbols: dict[str, str] = field(default_factory=dict)
    when: str = ""
    metrics: dict[str, str] = field(default_factory=dict)
    differences: str = ""


def names_in(text: str) -> list[str]:
    """'dapo+ace' -> ['dapo', 'ace']. A slug may end in '+' signs of its own (reinforce++, reinforce++-baseline)."""
    known, names, rest = slugs(), [], text.strip()
    if not rest:
        raise RecipeError("no method is named", hint="--method grpo; `coterie methods` lists them")
    while rest:
        match = max((s for s in known if rest == s or rest.startswith(s + "+")), key=len, default=None)
        if match is None:
            own = _FILE.match(rest)
            match = own[0] if own is not None else rest.split("+")[0] or rest
            if own is None:
                raise RecipeError(f"unknown method '{match}'", hint=_hint(match))
        names.append(match)
        rest = rest[len(match) + 1 :] if rest[len(match) :] != "+" else "+"
        if len(names) > 20:
            raise RecipeError(f"'{text}' is not a list of methods", hint="join methods with '+': dapo+kl")
    if len(set(names)) != len(names):
        raise RecipeError(f"'{text}' names a method twice")
    return names


def _hint(name: str) -> str:
    """The file of the user's that is meant, or the nearest slug."""
    mine = [file for file in (f"{name}.yaml", f"{name}.yml") if Path(file).is_file()]
    return f"a method of your own is named as a file: {mine[0]}" if mine else did_you_mean(name, slugs())


def absolute(text: str) -> str:
    """'dapo+mine.yaml' with the user's own files as absolute paths, so that a run can be resumed from anywhere."""
    return "+".join(str(Path(n).resolve()) if _FILE.fullmatch(n) else n for n in names_in(text))


def spoken(text: str) -> str:
    """The same with the files' names alone, for titles."""
    return "+".join(Path(n).name if _FILE.fullmatch(n) else n for n in names_in(text))


def slugs() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def load(name: str) -> Method:
    """A method by its slug, or from a user's own YAML file of the same form, read anew each time."""
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name), own=True)
    if not (FOLDER / f"{name}.yaml").is_file():
        raise RecipeError(f"unknown method '{name}'", hint=_hint(name))
    return _named(name)


@cache
def _named(slug: str) -> Method:
    return _read(FOLDER / f"{slug}.yaml", own=False)


def _read(path: Path, own: bool) -> Method:
    layer = read_yaml_file(path) if own else read_yaml(path.read_text(encoding="utf-8"), f"method {path.stem}")
    tree: dict[str, Any] = layer.tree
    for key in tree:
        if key not in KEYS:
            raise RecipeError(f"unknown key '{key}'", where=layer.where((key,)), hint=did_you_mean(key, KEYS))
    for key in ("title", "summary", "recipe"):
        if key not in tree:
            raise RecipeError(f"a method needs '{key}'", where=layer.origin)
    lines = {path[1:]: n for path, n in layer.lines.items() if path[:1] == ("recipe",)}
    origin = layer.origin if own else path.stem
    recipe = Layer(origin, tree["recipe"] or {}, lines if own else {})
    return Method(
        slug=path.stem, title=tree["title"], summary=tree["summary"].strip(), formula=tree.get("formula", "").strip(),
        layer=recipe, paper=tree.get("paper"), symbols=tree.get("symbols") or {}, when=tree.get("when", "").strip(),
        metrics=tree.get("metrics") or {}, differences=tree.get("differences", "").strip(),
    )  # fmt: skip


def all_methods() -> list[Method]:
    return [load(slug) for slug in slugs()]
