"""`python -m bench.stability [LABEL …]`: play the cells that are not recorded yet, print the table, draw the figure.

`python -m bench stability` does the same, for all objectives. Here also:

python -m bench.stability                  every missing cell: about 20 minutes on one core if none is recorded
python -m bench.stability GSPO CISPO       only objectives whose label or method contains one of these words
python -m bench.stability GSPO --again     forget what is recorded of them first
python -m bench.stability --figure         only the table and docs/img/stability.png of what is recorded
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from bench.stability import LATE, OBJECTIVES, SEEDS, Objective
from bench.stability.cells import Record, play, warm_models
from bench.stability.figure import draw
from bench.stability.summary import rows, shown


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.stability")
    parser.add_argument("words", nargs="*", metavar="objective")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--again", action="store_true", help="play the named objectives anew")
    parser.add_argument("--figure", action="store_true", help="only table and figure of what is recorded")
    args = parser.parse_args()
    chosen = [o for o in OBJECTIVES if not args.words or any(w.lower() in _names(o) for w in args.words)]
    if not chosen:
        parser.error(f"no objective '{args.words[0]}'; there are: {', '.join(o.label for o in OBJECTIVES)}")
    console, record = Console(), Record.load()
    if args.again:
        record.forget([o.label for o in chosen])
    if not args.figure:
        play_missing(chosen, args.seeds, record)
    table = Table("objective", *(f"{late} late" for late in LATE), title="accuracy at the end, 95% interval")
    for row in rows(record.cells):
        table.add_row(row["objective"], *(shown(row["late"].get(str(late)), "accuracy") for late in LATE))
    console.print(table)
    if record.cells:
        draw(rows(record.cells))


def _names(objective: Objective) -> str:
    return f"{objective.label} {objective.method}".lower()


def play_missing(chosen: list[Objective], seeds: int, record: Record) -> None:
    """Play the cells of these objectives that are not recorded yet, on one thread."""
    import torch

    console = Console()
    torch.set_num_threads(1)
    todo = []
    for objective in chosen:
        if missing := objective.missing():
            console.print(f"{objective.label}: skipped, there is no method {', '.join(missing)} yet")
            continue
        todo += [(objective, late, seed) for late in LATE for seed in range(seeds)]
    todo = [cell for cell in todo if not record.has(cell[0].label, *cell[1:])]
    if not todo:
        return
    with warm_models(sorted({seed for _, _, seed in todo})) as models:
        for number, (objective, late, seed) in enumerate(todo, start=1):
            found = play(objective, late, seed, models[seed])
            record.add(found)
            console.print(
                f"{number}/{len(todo)} {objective.label}, {late} late, seed {seed}: {found['accuracy']:.2f} "
                f"({found['seconds']:.1f} s)"
            )


if __name__ == "__main__":
    main()
