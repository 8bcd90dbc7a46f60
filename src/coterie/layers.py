"""Where a recipe's values come from: methods, a YAML file, `key=value` arguments. Each value remembers its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coterie.errors import RecipeError

Path_ = tuple[str, ...]


@dataclass
class Layer:
    """A nested mapping of recipe values with the place each was written at."""

    origin: str
    tree: dict[str, Any]
    lines: dict[Path_, int] = field(default_factory=dict)

    def where(self, path: Path_) -> str:
        """`file:line` where known (the nearest enclosing key that has a line), else the origin."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.origin}:{self.lines[path[:end]]}"
        return self.origin


def read_yaml(text: str, origin: str) -> Layer:
    """Parse YAML into plain data (no tags, no code), keeping line numbers and refusing duplicate keys."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RecipeError(
            f"not valid YAML: {getattr(error, 'problem', None) or error}",
            where=f"{origin}:{mark.line + 1}" if mark else origin,
        ) from None
    lines: dict[Path_, int] = {}
    try:
        tree = _build(node, (), lines, origin) if node is not None else {}
    except RecursionError:
        raise RecipeError("an alias refers to itself", where=origin, hint="recipes are plain values") from None
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of sections", where=origin, hint="for example 'task: countdown'")
    return Layer(origin, tree, lines)


def read_yaml_file(path: Path) -> Layer:
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        run = (path / "recipe.yaml").is_file()
        raise RecipeError(
            f"{path} is a {'run' if run else 'folder'}, not a recipe",
            hint=f"coterie resume {path}, or a new run: coterie train {path / 'recipe.yaml'}"
            if run
            else "give the path of a recipe .yaml",
        ) from None
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}", hint="give the path of a recipe .yaml") from None
    except UnicodeDecodeError:
        raise RecipeError("not a text file", where=str(path), hint="give the path of a recipe .yaml") from None
    return read_yaml(text, str(path))


def _build(node: yaml.Node, path: Path_, lines: dict[Path_, int], origin: str) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in out:
                raise RecipeError(f"'{key}' is written twice", where=f"{origin}:{key_node.start_mark.line + 1}")
            out[key] = _build(value_node, (*path, key), lines, origin)
            lines[(*path, key)] = key_node.start_mark.line + 1
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, str(i)), lines, origin) for i, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except yaml.constructor.ConstructorError:
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        raise RecipeError(
            f"the YAML tag '{tag}' is not allowed", where=f"{origin}:{lines[path]}", hint="recipes are plain values"
        ) from None


def read_override(text: str) -> Layer:
    """`rollout.group_size=8` -> a layer; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"'{text}' is not a setting", where="command line", hint="write it as key=value, steps=200")
    parsed = read_yaml("value: " + (value if value.strip() else "null"), f"'{text}'").tree["value"]
    return from_dotted({key.strip(): parsed}, f"'{text}'")


def from_dotted(values: Mapping[str, Any], origin: str) -> Layer:
    """{'rollout.group_size': 8, 'steps': 2} -> a layer."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        node = tree
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        if isinstance(value, Mapping) and isinstance(node.get(last), dict):
            node[last] |= value
        else:
            node[last] = dict(value) if isinstance(value, Mapping) else value
    return Layer(origin, tree)


def leaves(tree: Mapping[str, Any], stop: frozenset[str], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every (path, value) below a tree; a path in `stop` (dotted) is a leaf whatever its value."""
    for key, value in tree.items():
        here = (*path, key)
        if isinstance(value, Mapping) and value and ".".join(here) not in stop:
            yield from leaves(value, stop, here)
        else:
            yield here, value
