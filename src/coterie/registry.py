"""Finding pieces: ours, those of plug-ins, and those of a user's own file."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
from pathlib import Path

from coterie import pieces
from coterie.errors import RecipeError, did_you_mean
from coterie.pieces import KINDS, Piece
from coterie.user_files import load_file

_discovered: set[str] = set()


def discover(package: str) -> None:
    """Import every module of a stage's package, so that its pieces register and are the package's attributes."""
    if package in _discovered:
        return
    _discovered.add(package)
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        if not info.ispkg:
            importlib.import_module(f"{package}.{info.name}")
    for piece in list(pieces.REGISTERED.values()):
        owner, _, name = piece.module.rpartition(".")
        if owner == package:
            public = piece.fn.__name__
            setattr(module, public, getattr(sys.modules[f"{owner}.{name}"], public))


def _discover_all() -> None:
    for package, _ in KINDS.values():
        discover(package)
    if "plug-ins" not in _discovered:
        _discovered.add("plug-ins")
        for entry in importlib.metadata.entry_points(group="coterie.pieces"):
            entry.load()


def get(kind: str, slug: str, *, where: str = "") -> Piece:
    """The piece of a kind by its slug, or by `file.py:name` for a user's own."""
    if ".py:" in slug:
        path, _, name = slug.rpartition(":")
        return _of_file(kind, path, name, where)
    _discover_all()
    piece = pieces.REGISTERED.get((kind, slug)) or pieces.REGISTERED.get((kind, slug.replace("-", "_")))
    if piece is None:
        known = [s for k, s in pieces.REGISTERED if k == kind]
        hint = f"name the piece in it too: {slug}:NAME" if slug.endswith(".py") else did_you_mean(slug, known)
        raise RecipeError(f"unknown {kind.replace('_', ' ')} '{slug}'", where=where or None, hint=hint)
    return piece


def _of_file(kind: str, path: str, name: str, where: str) -> Piece:
    """A piece of a user's file by the name of its function: a file may hold several."""
    module = load_file(path)
    own = [p for p in pieces.REGISTERED.values() if p.module == module]
    named = [p for p in own if p.fn.__name__ == name]
    for piece in named:
        if piece.kind == kind:
            return piece
    wanted = kind.replace("_", " ")
    if named:
        message, hint = f"'{name}' of {path} is a {named[0].kind.replace('_', ' ')}, not a {wanted}", None
        if {kind, named[0].kind} == {"baseline", "modifier"}:
            hint = "a credit piece that reads 'advantages' is a modifier, one that does not is a baseline"
    elif hasattr(sys.modules[module], name):
        decorator = "credit" if kind in ("baseline", "modifier") else kind
        message = f"'{name}' of {path} is no piece"
        hint = f"decorate it with @{decorator}(), from coterie.pieces import {decorator}"
    else:
        message, hint = f"{path} has no {wanted} '{name}'", did_you_mean(name, [p.fn.__name__ for p in own])
    raise RecipeError(message, where=where or None, hint=hint)


def source(piece: Piece) -> Path:
    """The file a piece is written in."""
    return Path(str(sys.modules[piece.module].__file__))


def all_pieces(kind: str | None = None) -> list[Piece]:
    """Every registered piece (of one kind), built-in, plug-in and user-defined, in order of kind and slug."""
    _discover_all()
    return sorted((p for p in pieces.REGISTERED.values() if kind in (None, p.kind)), key=lambda p: (p.kind, p.slug))
