"""A step at 8 to 4,096 GPUs, simulated by a model that is first held against measured runs on this machine.

Calibration measures decode, prefill and training of the local engine here; the simulator then says how long other calls
take, of other shapes and of lengths with a long tail, which are measured too. The clusters are assumptions, named in
`clusters.py`: nothing about them was measured.
"""

from __future__ import annotations

from typing import Any

from bench.results import Figure, Findings
from bench.scale_sim.calibrate import CALIBRATION, JUDGED, costs_of, measured, policy
from bench.scale_sim.clusters import GPUS, compared
from bench.scale_sim.figure import draw


def run(options: Any) -> Findings:
    found = Findings()
    calls = CALIBRATION + JUDGED
    seconds = measured(policy(), calls, options.runs_or(5, 2))
    costs = costs_of(CALIBRATION, seconds[: len(CALIBRATION)])
    found.detail["costs here, seconds"] = vars(costs)
    rows = [
        {"setting": c.name, "seconds": s, "simulated": (guess := c.simulated(costs)), "ratio": guess / s}
        for c, s in zip(calls, seconds, strict=True)
    ]
    found.detail["calibration"], found.rows = rows[: len(CALIBRATION)], rows[len(CALIBRATION) :]
    worst = max(max(row["ratio"], 1 / row["ratio"]) for row in found.rows)
    found.figures.append(Figure("simulated against measured time here, the worst", worst, 1.25, 1, at_most=True))
    results = compared((8, 1024) if options.quick else GPUS)
    found.detail["clusters"] = results
    for gpus in (8, 1024):
        mine = {r["mode"]: r["rollouts a second"] for r in results if r["gpus"] == gpus}
        for mode in list(mine)[1:]:
            name = f"simulated, {gpus} GPUs, {mode} against synchronous"
            found.figures.append(Figure(name, mine[mode] / mine["synchronous"], None, 1))
    if not options.quick:  # two numbers of GPUs make no curve
        draw(results)
    found.notes += [
        "measured on one thread, in processor time, the least of interleaved calls",
        "clusters are simulated, from the assumptions in bench/scale_sim/clusters.py, not measured",
    ]
    return found
