"""`python -m bench.claims [NAME …] [--seeds N]`: run the experiments, print a table, record results, draw the figure.

python -m bench.claims                   all of them: about 20 minutes on one core
python -m bench.claims ngrpo --seeds 5   one, with five seeds
python -m bench.claims --list            what there is
python -m bench.claims --figure          only draw docs/img/claims.png again
"""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.table import Table

from bench.claims import Experiment
from bench.claims.entries import EXPERIMENTS
from bench.claims.figure import draw
from bench.claims.record import Played, record, recorded


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.claims")
    parser.add_argument("names", nargs="*", metavar="experiment")
    parser.add_argument("--seeds", type=int, help="instead of each experiment's own number")
    parser.add_argument("--list", action="store_true", help="name the experiments and their claims")
    parser.add_argument("--figure", action="store_true", help="only draw the figure of what is recorded")
    args = parser.parse_args()
    known = {e.slug: e for e in EXPERIMENTS}
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"no experiment '{unknown[0]}'; there are: {', '.join(known)}")
    console = Console()
    if args.list:
        for slug, experiment in known.items():
            console.print(f"[bold]{slug}[/bold]  {experiment.claim}")
        return
    if not args.figure:
        import torch

        torch.set_num_threads(1)
        table = Table("experiment", "figure", "method", "baseline", "difference", "95% interval", "seeds", "claim")
        for name in args.names or known:
            _run(known[name], args.seeds or known[name].seeds, table, console)
        console.print(table)
    draw(recorded())


def _run(experiment: Experiment, seeds: int, table: Table, console: Console) -> None:
    if missing := experiment.missing():
        console.print(f"{experiment.slug}: skipped, there is no method {', '.join(missing)} yet")
        return
    began, found = time.perf_counter(), []
    for side in (experiment.ours, experiment.baseline):
        chosen, rate = experiment.tuned(side)
        found.append(Played(chosen, rate, [experiment.setting(chosen, seed) for seed in range(seeds)]))
    result = record(experiment, *found, time.perf_counter() - began)
    console.print(f"{experiment.slug}: {result['verdict']} ({result['seconds']:.0f} s)")
    for number, figure in enumerate(result["figures"]):
        low, high = figure["interval"]
        table.add_row(
            experiment.slug if number == 0 else "", figure["figure"], f"{figure['ours']:.3f}",
            f"{figure['baseline']:.3f}", f"{figure['difference']:+.3f}", f"{low:+.3f} .. {high:+.3f}", str(seeds),
            result["verdict"] if number == 0 else "",
        )  # fmt: skip


if __name__ == "__main__":
    main()
