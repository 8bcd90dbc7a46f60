"""A step at 8 to 4,096 GPUs, simulated by a model that is first held against measured runs on this machine.

Calibration measures decode, prefill and training of the local engine here; the simulator then says how long other calls
take, of other shapes and of lengths with a long tail, which are measured too. The clusters are assumptions, named in
`clusters.py`: nothing about them was measured.
"""

from __future__ import annotations

from typing import Any

from bench.results import Figure, Findings
from bench.scale_sim.calibrate import calibrate, held_against
from bench.scale_sim.clusters import GPUS, compared
from bench.scale_sim.figure import draw


def run(options: Any) -> Findings:
    found = Findings()
    costs = calibrate(options.threads, options.runs_or(3, 2))
    found.detail["costs here, seconds"] = vars(costs)
    worst = 1.0
    for name, measured, simulated in held_against(costs, options.threads, options.runs_or(3, 2)):
        ratio = simulated / measured
        worst = max(worst, ratio, 1 / ratio)
        found.rows.append({"setting": name, "seconds": measured, "simulated": simulated, "ratio": ratio})
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
    found.notes.append("clusters are simulated, from the assumptions in bench/scale_sim/clusters.py, not measured")
    return found
