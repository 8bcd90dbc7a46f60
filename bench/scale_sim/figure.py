"""docs/img/scale_sim.png: rollouts trained a second over the number of GPUs, a line a way to use them."""

from __future__ import annotations

from typing import Any

from bench.environments import ROOT
from bench.pictures import save

PATH = ROOT / "docs" / "img" / "scale_sim.png"


def draw(results: list[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for mode in dict.fromkeys(r["mode"] for r in results):
        mine = [r for r in results if r["mode"] == mode]
        gpus = [r["gpus"] for r in mine]
        left.plot(gpus, [r["rollouts a second"] for r in mine], marker="o", markersize=3, label=mode)
        right.plot(gpus, [r["idle share of generation"] for r in mine], marker="o", markersize=3)
    left.set(xscale="log", yscale="log", xlabel="GPUs (simulated)", ylabel="rollouts trained a second")
    right.set(xscale="log", ylim=(0, 1), xlabel="GPUs (simulated)", ylabel="idle share of generating workers")
    for axes in (left, right):
        axes.set_xticks(gpus, [str(n) for n in gpus])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=7)
    save(figure, PATH)
