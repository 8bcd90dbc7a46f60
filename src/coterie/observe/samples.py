"""What a policy makes of the same prompts from noise that stays the same: the picture to look at before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.evaluator import complete, verdicts
from coterie.observe import canvases
from coterie.observe.curves import COLOURS, GRID
from coterie.observe.files import replacing
from coterie.observe.pictures import side_by_side
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.rollouts import Rollouts
from coterie.sampling import held_out
from coterie.tasks.base import PICTURES, Latent

if TYPE_CHECKING:
    from coterie.run import Run

EACH, SHOWN = 8, 12
"""Samples a class, and classes shown."""
EACH_LARGE, SHOWN_LARGE = 2, 4
"""The same of pictures that a pipeline draws: these take time."""
PROMPTS, NARROW, CANVASES = 10, 8, 4
"""Prompts whose canvases are shown, and how many of each; one where a canvas has more than so many places."""
SIGNALS = 4
"""Signals shown, where prompts are such."""
WRONG = "#c92a2a"


def pictured(run: Run) -> bool:
    """Whether there is a picture to draw: samples are arrays, or places that are filled in some order."""
    return run.task.latent is not None or (isinstance(run.policy, MaskedDiffusion) and len(run.task.held_out) > 0)


def draw(run: Run, path: Path) -> None:
    """Write what is made of some held-out prompts, as an evaluation samples: pictures in a grid, points of the plane as
    a plot, unmasked canvases in rows.
    """
    figure = _canvases(run) if run.task.latent is None else _samples(run, run.task.latent)
    path.parent.mkdir(exist_ok=True)
    with replacing(path, "the samples") as temporary:
        figure.savefig(temporary, dpi=90, format="png", metadata={"Software": None})


def _samples(run: Run, latent: Latent) -> Any:
    if latent.told:
        return _signals(run)
    source, large = run.task.held_out or run.task.train, latent == PICTURES
    by_class = {row["prompt"]: row for row in (source[i] for i in range(len(source)))}
    names = list(by_class)[:SHOWN_LARGE] if large else [name for name in latent.classes if name in by_class][:SHOWN]
    each = EACH_LARGE if large else EACH
    rows = [by_class[name] for name in names]
    made = complete(run.policy, rows, held_out(run.settings, run.task), each, run.settings.seed, "picture")
    right = verdicts(run.task, made).tolist() if run.task.judges else [True] * len(made)
    return _grid(made, right, latent, each) if large or len(latent.shape) == 2 else _plot(made, latent)


def _signals(run: Run) -> Any:
    """What was told and two samples of it, each beside the reference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [run.task.held_out[i] for i in range(min(SIGNALS, len(run.task.held_out)))]
    made = complete(run.policy, rows, held_out(run.settings, run.task), 2, run.settings.seed, "picture")
    figure = Figure(figsize=(7, 1.3 * len(rows) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, axes in enumerate(figure.subplots(len(rows), 3, sharex=True, sharey=True, squeeze=False).flat):
        i, column = divmod(place, 3)
        told = [float(n) for n in run.policy.decode(made.prompts[i].tokens).split()]
        axes.plot(told if column == 0 else np.ravel(made.texts[2 * i + column - 1]), color=COLOURS[0], linewidth=1.2)
        if run.task.reference is not None:
            axes.plot(np.ravel(run.task.reference(rows[i])), color="0.6", linewidth=0.8)
        if i == 0:
            axes.set_title(("told", "sample 1", "sample 2")[column], fontsize=9)
        axes.tick_params(labelsize=7)
    return figure


def _canvases(run: Run) -> Any:
    policy = run.policy
    assert isinstance(policy, MaskedDiffusion)
    rows = [run.task.held_out[i] for i in range(min(PROMPTS, len(run.task.held_out)))]
    each = CANVASES if policy.width <= NARROW else 1
    made = complete(policy, rows, held_out(run.settings, run.task), each, run.settings.seed, "picture")
    right = verdicts(run.task, made).tolist() if run.task.judges else [True] * len(made)
    texts = [policy.token_texts(row) for row in made.media["canvas"].tolist()]
    known = (made.media["canvas"] != policy.mask_id).tolist()
    tokens = [[t if k else None for t, k in zip(*pair, strict=True)] for pair in zip(texts, known, strict=True)]
    return canvases.draw(made, right, [_end(policy.decode(p.tokens)) for p in made.prompts], tokens, each)


def _end(prompt: str, letters: int = 30) -> str:
    """The end of a prompt, on one line."""
    line = " ".join(prompt.replace("$", r"\$").split())
    return line if len(line) <= letters else "…" + line[1 - letters :]


def _grid(made: Rollouts, right: list[bool], latent: Latent, each: int) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(made) // each
    pictures = [side_by_side(np.asarray(sample)) for sample in made.texts]
    inches = 0.55 if latent != PICTURES else 1.5
    figure = Figure(figsize=(inches * count * pictures[0].shape[1] / pictures[0].shape[0], inches * each + 0.2))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, 0.12, 0.12)
    for i, (picture, fine) in enumerate(zip(pictures, right, strict=True)):
        axes = figure.add_subplot(each, count, i % each * count + i // each + 1)
        axes.imshow(picture, cmap="gray_r", vmin=latent.low, vmax=latent.high)
        if i % each == 0:
            axes.set_title(made.prompts[i // each].row["prompt"], fontsize=8, pad=3)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_color(GRID if fine else WRONG)
            side.set_linewidth(1.0 if fine else 2.0)
    return figure


def _plot(made: Rollouts, latent: Latent) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = np.stack([np.asarray(t).ravel() for t in made.texts])
    points = np.concatenate([points, np.zeros_like(points)], 1)[:, :2]
    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    groups = made["groups"].cpu().numpy()
    axes.scatter(points[:, 0], points[:, 1], c=[COLOURS[g % len(COLOURS)] for g in groups], s=14)
    axes.set_aspect("equal")
    axes.set_xlim(-2, 2)
    axes.set_ylim(-2, 2)
    axes.grid(color=GRID)
    return figure
