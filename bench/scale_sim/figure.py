"""docs/img/scale_sim.png: over the number of GPUs, a line a way to use them: rollouts a second, against synchronous
steps, and how long generating workers have nothing to do."""

from __future__ import annotations

from typing import Any

from bench.environments import ROOT
from bench.pictures import save

PATH = ROOT / "docs" / "img" / "scale_sim.png"
PLAIN = "synchronous"
COLOURS = {
    PLAIN: "#333333",
    "synchronous, prompts not shared": "#9a9a9a",
    "partial rollouts": "#d97706",
    "asynchronous, 1 late at most": "#2b7bba",
    "asynchronous, 4 late at most": "#0b3d66",
}


def draw(results: list[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    speed, gain, idle = figure.subplots(1, 3)
    gpus = sorted({r["gpus"] for r in results})
    plain = [r["rollouts a second"] for r in results if r["mode"] == PLAIN]
    for mode, colour in COLOURS.items():
        mine = [r for r in results if r["mode"] == mode]
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3.5, "linewidth": 1.5}
        if mode == "synchronous, prompts not shared":
            style["linestyle"] = "--"
        each = [r["rollouts a second"] for r in mine]
        speed.plot(gpus, each, label=mode, **style)
        gain.plot(gpus, [a / b for a, b in zip(each, plain, strict=True)], **style)
        idle.plot(gpus, [100 * r["idle share of generation"] for r in mine], **style)
    speed.set(yscale="log", title="rollouts trained, a second")
    speed.yaxis.set_major_formatter("{x:,.0f}")
    gain.set(title="times as fast as synchronous", ylim=(0, None))
    idle.set(title="generating workers with nothing to do, %", ylim=(0, 100))
    for axes in (speed, gain, idle):
        axes.set(xscale="log", xlabel="GPUs (simulated)")
        axes.set_xticks(gpus, [f"{n:,}" for n in gpus])
        axes.minorticks_off()
        axes.title.set_fontsize(10)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save(figure, PATH)
