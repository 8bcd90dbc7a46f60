"""`coterie methods` and `coterie tasks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from rich.padding import Padding
from rich.text import Text

from coterie import methods, registry
from coterie.cli.output import console, print_json, table
from coterie.methods import Method
from coterie.methods.status import CHECKS, Status, load, status
from coterie.recipe import pieces_of


def list_methods(as_json: bool) -> None:
    every, recorded = methods.all_methods(), load()
    if as_json:
        print_json([describe(m, recorded) for m in every])
        return
    out = table("method", "title", "paper", "status")
    for method in every:
        out.add_row(method.slug, method.title, method.paper or "", str(status(method.slug, recorded)))
    console.print(out)
    console.print("\njoin them with '+': --method dapo+kl      explain one: coterie methods show dapo")


def describe(method: Method, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "slug": method.slug, "title": method.title, "paper": method.paper, **_standing(method, recorded),
        "summary": method.summary,
        "formula": method.formula, "symbols": method.symbols, "when": method.when, "metrics": method.metrics,
        "differences": method.differences, "recipe": method.layer.tree,
        "pieces": [
            {"slot": slot, "piece": b.piece.slug, "settings": {k: str(v) for k, v in b.settings.items()},
             "paper": b.piece.paper, "doc": b.piece.doc}
            for slot, b in pieces_of(method.layer)
        ],
    }  # fmt: skip


def _standing(method: Method, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Whether the tests have verified it, and what is missing. A method in a file of the user's has no status."""
    if not _is_named(method):
        return {}
    found = status(method.slug, recorded)
    return {
        "status": "verified" if found.verified else "unverified", "missing": list(found.missing),
        "changed_since": found.changed, "checks": dict(found.passed),
    }  # fmt: skip


def _is_named(method: Method) -> bool:
    return method.layer.origin == method.slug


def show_method(slug: str, as_json: bool) -> None:
    """Formula, symbols, defaults, when to use it, metrics, differences from the paper."""
    chosen = [methods.load(name) for name in methods.names_in(slug)]
    if as_json:
        print_json([describe(m) for m in chosen] if len(chosen) > 1 else describe(chosen[0]))
        return
    for method in chosen:
        _page(method)


def _page(method: Method) -> None:
    console.print(f"[bold]{method.slug}[/bold]  {method.title}" + (f"  ({method.paper})" if method.paper else ""))
    console.print(f"\n{method.summary}")
    _section("formula", [method.formula])
    _section("symbols", [f"{symbol}: {meaning}" for symbol, meaning in method.symbols.items()])
    lines = []
    for slot, bound in pieces_of(method.layer):
        settings = ", ".join(f"{k}={v}" for k, v in bound.settings.items())
        lines.append(f"{slot} = {bound.piece.slug}" + (f"  ({settings})" if settings else ""))
        lines.append(f"    {bound.piece.summary}")
    _section("pieces and defaults", lines)
    _section("when to use it", [method.when])
    _section("differences from the paper", [method.differences])
    _section("metrics to watch", [f"{name}: {meaning}" for name, meaning in method.metrics.items()])
    if _is_named(method):
        _section("status", _checks(status(method.slug)))
    _section("use", [f"coterie train --model MODEL --task TASK --method {method.slug}\n"])


def _checks(found: Status) -> list[str]:
    lines = [f"{check}: {found.passed.get(check) or 'no'} tests passed ({what})" for check, what in CHECKS.items()]
    return [str(found), *(lines if found.passed else [])]


def _section(title: str, lines: list[str]) -> None:
    if any(lines):
        console.print(f"\n[bold]{title}[/bold]")
        for line in lines:
            indent = 2 + len(line) - len(line.lstrip())
            console.print(Padding(Text(line.strip()), (0, 0, 0, indent)))


def list_tasks(as_json: bool) -> None:
    every = registry.all_pieces("task")
    if as_json:
        print_json([
            {"task": p.slug, "summary": p.summary,
             "settings": {n: {"type": s.type_text, "default": s.default} for n, s in p.settings.items()}}
            for p in every
        ])  # fmt: skip
        return
    out = table("task", "what", "settings")
    for piece in every:
        out.add_row(piece.slug, piece.summary, ", ".join(f"{n}={s.default}" for n, s in piece.settings.items()))
    console.print(out)
    console.print("\na data file is a task too: --task my.jsonl (see jsonl)")


def validate_task(name: str, arguments: list[str], limit: int | None, as_json: bool) -> None:
    """Exit 1 unless the verifier accepts every reference answer and rejects every corrupted one."""
    from coterie.build import build_task
    from coterie.recipe import resolve
    from coterie.tasks.base import validate

    overrides = [a if a.startswith("task") else f"task.{a}" for a in arguments]
    task = build_task(resolve(values={"task": name}, overrides=overrides))
    report = validate(task, limit=limit)
    if as_json:
        print_json(report.__dict__)
    else:
        for key, value in report.__dict__.items():
            console.print(f"{key}: {value}", markup=False)
    if not report.ok:
        raise typer.Exit(1)
