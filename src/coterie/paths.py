"""Paths that a recipe names, made absolute, so that a run can be resumed from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def absolute(value: Any) -> Any:
    """A local path made absolute, 'file.py:name' too, so that a run can be resumed from anywhere; else the value."""
    if not isinstance(value, str) or not value:
        return value
    file, colon, name = value.rpartition(":") if ".py:" in value else (value, "", "")
    looks_local = "/" in file or Path(file).suffix
    return str(Path(file).resolve()) + colon + name if looks_local and Path(file).exists() else value


def absolute_model(written: Any) -> Any:
    """A model as written, its folder made absolute."""
    if isinstance(written, Mapping):
        return {**written, "name": absolute_model(written["name"])} if "name" in written else written
    return str(Path(written).resolve()) if isinstance(written, str) and written and Path(written).is_dir() else written


def absolute_function(function: Any) -> Any:
    """A reward function as written, its file made absolute."""
    if isinstance(function, Mapping):
        return {**function, "fn": absolute(function["fn"])} if "fn" in function else function
    return absolute(function)


def absolute_data(name: Any) -> Any:
    """A path or glob made absolute where it leads somewhere, else the name (of a dataset)."""
    if not isinstance(name, str | Path):
        return name
    path = Path(name).expanduser()
    local = path.exists() or path.is_absolute() or any(c in str(name) for c in "*?[")
    return str(path.absolute()) if local else str(name)


def absolute_place(path: Any) -> Any:
    """A folder made absolute, whether it is there or not; else the URL."""
    return str(Path(path).expanduser().absolute()) if isinstance(path, str) and path and "://" not in path else path
