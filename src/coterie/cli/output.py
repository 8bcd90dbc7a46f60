"""What commands print: a short table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(*headers: str) -> Table:
    out = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(headers))
    for header in headers:
        out.add_column(header, overflow="fold")
    return out


def print_metrics(metrics: Mapping[str, Any]) -> None:
    out = table("metric", "value")
    for name, value in metrics.items():
        out.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(out)


def print_result(result: Any, as_json: bool) -> None:
    """Where a run ended and what to do next."""
    path, evaluated = result.path, [m for m in result.metrics if "eval/accuracy" in m]
    if as_json:
        print_json({"run": str(path), "interrupted": result.interrupted, "last": result.last})
        return
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        text = f"held-out accuracy  {first['eval/accuracy']:.1%} -> {last['eval/accuracy']:.1%} sampled"
        if "eval/greedy" in last:
            text += f", {first.get('eval/greedy', float('nan')):.1%} -> {last['eval/greedy']:.1%} greedy"
        console.print(text)
    if result.interrupted:
        console.print(f"stopped at step {result.last.get('step', 0)}; go on with: coterie resume {path}")
    console.print(f"curve       {path / 'curves.png'}")
    console.print(f"report      {path / 'report.html'}")
    console.print(f"checkpoint  {newest(path)}")


def newest(path: Any) -> Any:
    from coterie.checkpoint import CheckpointStore

    return CheckpointStore(path / "checkpoints").latest()
