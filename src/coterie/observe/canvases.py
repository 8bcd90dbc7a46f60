"""Canvases that a policy unmasked, as a picture: what stands at each place, and how late it was put there."""

from __future__ import annotations

from typing import Any

from coterie.observe.curves import GRID
from coterie.rollouts import Rollouts

PLACES = 32
"""Places shown of a canvas, from its beginning."""
LETTERS = 6
"""Characters shown of a token."""
WRONG = "#c92a2a"


def draw(made: Rollouts, right: list[bool], prompts: list[str], tokens: list[list[str | None]], each: int) -> Any:
    """A row a prompt and `each` canvases in it, as a figure.

    tokens [B][C]: the text of each place, None where it is still masked. The shade of a cell is the share of the
    rollout's forward passes that had been made when the place was filled; a red frame is a wrong answer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    passes = made.media["unmasked"].tolist()
    width = min(len(passes[0]), PLACES)
    letters = max((len(_short(t)) for row in tokens for t in row[:width] if t is not None), default=1)
    cell = 0.16 + 0.085 * max(letters, 2)
    label = 0.3 + 0.085 * max(map(len, prompts))
    inches = (label + each * (width * cell + 0.25), 0.4 * len(prompts) + 0.35)
    figure = Figure(figsize=inches)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, inches[0])
    axes.set_ylim(inches[1], 0)
    axes.axis("off")
    for row, prompt in enumerate(prompts):
        top = 0.08 + 0.4 * row
        axes.text(label - 0.15, top + 0.16, prompt, ha="right", va="center", fontsize=9, family="monospace")
        for sample in range(each):
            number = row * each + sample
            left = label + sample * (width * cell + 0.25)
            last = max(max(passes[number]), 1)
            for place in range(width):
                text, when = tokens[number][place], passes[number][place]
                share = 0.1 + 0.5 * max(when, 0) / last
                colour = "white" if text is None else tuple(1 - share * (1 - c) for c in to_rgb("#2563eb"))
                box = (left + place * cell, top)
                axes.add_patch(Rectangle(box, cell, 0.32, facecolor=colour, edgecolor=GRID, linewidth=0.8))
                if text is not None:
                    axes.text(box[0] + cell / 2, top + 0.17, _short(text), ha="center", va="center", fontsize=8)
            frame = {"edgecolor": WRONG, "linewidth": 2.0} if not right[number] else {"edgecolor": GRID}
            axes.add_patch(Rectangle((left, top), width * cell, 0.32, fill=False, **frame))
    note = "the darker a place, the later it was filled; white: still masked when the rollout ended"
    axes.text(label, inches[1] - 0.12, note, fontsize=7, color="#59636e", va="center")
    return figure


def _short(text: str) -> str:
    """A token's text as it fits into a cell; a dollar sign would begin a formula."""
    shown = text.replace("\n", "↵").replace("$", r"\$").strip(" ")
    return shown if len(shown) <= LETTERS else shown[: LETTERS - 1] + "…"
