"""What a bench found: a table on screen, bench/results/NAME.json, and one line a figure in summary.json."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import BenchError
from bench.environments import ROOT

RESULTS = ROOT / "bench" / "results"
BUSY = 1.5
"""A load average above this at the start means that others were using the machine."""


@dataclass
class Figure:
    """One number with the bar it is held against. Ratios are theirs over ours: more is better, unless `at_most`."""

    name: str
    ratio: float
    bar: float | None
    runs: int
    command: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar


@dataclass
class Findings:
    """`rows` is the table (a dict a row, the same keys), `detail` every measurement behind it."""

    figures: list[Figure] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: str | None = None


def machine() -> dict[str, Any]:
    load = os.getloadavg()[0]
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.split(":", 1) for line in file if ":" in line]
        fields = {key.strip(): value.strip() for key, value in lines}
        flags = fields.get("flags", "").split()
        cpu = fields.get("model name", cpu)
    else:
        flags = []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "simd": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "load_at_start": round(load, 2),
        "shared_with_other_work": load > BUSY,
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{p: version(p) for p in ("coterie", "torch", "transformers")}}


def command() -> str:
    return shlex.join(["python", "-m", "bench", *sys.argv[1:]])


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "all": list(values)}


def check(name: str, where: dict[str, Any], folder: Path) -> None:
    """Raises BenchError where the rest of a bench's settings were measured on another processor than this."""
    path = folder / f"{name}.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))["machine"]["cpu"]
    if before != where["cpu"]:
        raise BenchError(
            f"{path} holds what was measured on {before}, and this is {where['cpu']}: leave --only out, or write "
            "--into another folder"
        )


def write(name: str, found: Findings, where: dict[str, Any], *, part: bool = False, folder: Path = RESULTS) -> None:
    """The table on screen, NAME.json, and this bench's lines of summary.json in place of its earlier ones.

    Of a `part` of the settings, only these are replaced.
    """
    console = Console()
    if found.skipped:
        console.print(f"{name}: skipped, {found.skipped}")
        return
    table = Table(title=name)
    for key in found.rows[0] if found.rows else ():
        table.add_column(key, justify="right")
    for row in found.rows:
        table.add_row(*(_shown(v) for v in row.values()))
    console.print(table)
    for note in found.notes:
        console.print(f"  {note}")
    for figure in found.figures:
        figure.command = f"python -m bench {name}" + (" --quick" if "--quick" in sys.argv else "")
        verdict = {True: "met", False: "NOT met", None: "no bar"}[figure.met]
        bar = "" if figure.bar is None else f" (bar {'at most ' if figure.at_most else ''}{figure.bar:g})"
        console.print(f"  {figure.name}: {figure.ratio:.3g}{bar}: {verdict}")
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "name": name, "machine": where, "versions": versions() | found.detail.pop("versions", {}),
        "command": command(), "table": found.rows, "notes": found.notes,
        "figures": [{**asdict(f), "met": f.met} for f in found.figures], "measurements": found.detail,
    }  # fmt: skip
    path = folder / f"{name}.json"
    if part and path.exists():
        body = _merged(json.loads(path.read_text(encoding="utf-8")), body)
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _summarise(folder)


def _merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was measured now, and of what was measured before the rest."""

    def rows(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
        mine = [next(iter(row.values())) for row in new]
        return [row for row in old if next(iter(row.values())) not in mine] + new

    kept = {key: rows(before[key], now[key]) for key in ("table", "figures")}
    return {**now, **kept, "measurements": {**before["measurements"], **now["measurements"]}}


def _summarise(folder: Path) -> None:
    """Put the figures of every stored bench in one list."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        if path.name != "summary.json":
            for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]:
                lines.append({**figure, "ratio": round(figure["ratio"], 4)})
    (folder / "summary.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
