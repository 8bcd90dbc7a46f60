"""Optional trackers behind one protocol. A package is imported only when the recipe asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from coterie.errors import RecipeError, did_you_mean


class Writer(Protocol):
    """Where metrics go besides metrics.jsonl."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """Event files under RUN/tensorboard."""

    def __init__(self, path: Path, title: str) -> None:
        _require("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(path / "tensorboard"))
        self._writer.add_text("title", title)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in numbers(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A Weights & Biases run whose id is the run directory's name, so that a resumed run goes on in it."""

    def __init__(self, path: Path, title: str) -> None:
        wandb = _require("wandb")
        self._run = wandb.init(
            project="coterie", dir=str(path), id=path.name, name=path.name, notes=title, resume="allow"
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._run.log(numbers(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class TrackioWriter:
    """A trackio run named after the run directory."""

    def __init__(self, path: Path, title: str) -> None:
        trackio = _require("trackio")
        self._run = trackio.init(project="coterie", name=path.name, config={"title": title}, resume="allow")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._run.log(numbers(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


WRITERS: dict[str, type[TensorBoardWriter] | type[WandbWriter] | type[TrackioWriter]] = {
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
    "trackio": TrackioWriter,
}


def open_writers(names: Sequence[str], path: str | Path, title: str) -> list[Writer]:
    """The trackers a recipe names (`log.writers`). Raises RecipeError naming the extra when a package is missing."""
    for name in names:
        if name not in WRITERS:
            raise RecipeError(f"there is no writer '{name}'", where="log.writers", hint=did_you_mean(name, WRITERS))
    return [WRITERS[name](Path(path).resolve(), title) for name in names]


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers; the step is the axis, not a metric."""
    return {k: float(v) for k, v in metrics.items() if k != "step" and isinstance(v, int | float)}


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"the writer '{package}' needs the package {error.name}, which is not installed",
            where="log.writers",
            hint=f"pip install 'coterie[{package}]', or take it out of log.writers",
        ) from error
