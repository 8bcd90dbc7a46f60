"""The directory of a run: where everything is, what made it, how it ended, and who may write to it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from coterie.errors import RunError
from coterie.observe.files import replacing

State = Literal["running", "finished", "interrupted", "failed"]

_HELD: set[Path] = set()
"""Runs this process has locked: a POSIX lock does not stop its own process from taking it twice."""


class RunDir:
    """runs/NAME: recipe.yaml, manifest.json, status.json, metrics.jsonl, rollouts/, checkpoints/, curves, report."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.manifest = self.path / "manifest.json"
        self.status_file = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.rollouts = self.path / "rollouts"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.curves = self.path / "curves.png"
        self.report = self.path / "report.html"
        self.lock = self.path / ".lock"

    @classmethod
    def create(
        cls,
        path: str | Path | None = None,
        *,
        task: str,
        method: str,
        recipe: str,
        seed: int,
        root: str | Path = "runs",
    ) -> RunDir:
        """Make a new run directory (by default ROOT/TASK-METHOD-TIME) and write its recipe and manifest.

        Raises RunError when the path is taken by anything but an empty folder: a run is never overwritten.
        """
        run = cls(Path(path)) if path is not None else cls._named(Path(root), task, method)
        if not run._claim():
            hint = "name another directory, or remove this one"
            if run.recipe.exists():
                hint = f"`coterie resume {run.path}` goes on with it; name another directory for a new run"
            message = "already exists and is not empty; a run is never overwritten"
            raise RunError(message, where=str(run.path), hint=hint)
        with replacing(run.recipe, "the recipe") as temporary:
            temporary.write_text(recipe, encoding="utf-8")
        with replacing(run.manifest, "the manifest") as temporary:
            made = manifest(recipe, task=task, method=method, seed=seed)
            temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run. Raises RunError when there is none at `path`."""
        run = cls(path)
        if not run.recipe.is_file():
            known = sorted(p.parent for p in run.path.parent.glob("*/recipe.yaml"))
            runs = ", ".join(map(str, known[-5:]))
            hint = f"runs beside it: {runs}" if known else "name the folder that holds recipe.yaml"
            raise RunError("is not a run directory: it has no recipe.yaml", where=str(run.path), hint=hint)
        return run

    @classmethod
    def _named(cls, root: Path, task: str, method: str) -> RunDir:
        """A new folder ROOT/TASK-METHOD-TIME, numbered when runs start in the same second."""
        parts = [re.sub(r"[^A-Za-z0-9._+]+", "-", part).strip("-.") for part in (task, method)]
        name = "-".join([*(p for p in parts if p), datetime.now().strftime("%Y%m%d-%H%M%S")])
        place, number = root / name, 1
        with _making(place):
            root.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    place.mkdir()
                    return cls(place)
                except FileExistsError:
                    number += 1
                    place = root / f"{name}-{number}"

    def _claim(self) -> bool:
        """Make the folders. False when something is there already, or another process was faster.

        Making `rollouts` is what decides: the system lets exactly one process do it.
        """
        with _making(self.path):
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                return False
            try:
                self.rollouts.mkdir(parents=True)
            except FileExistsError:
                return False
            self.checkpoints.mkdir()
        return True

    def made_with(self) -> dict[str, Any]:
        """The manifest; {} for a run without one. Raises RunError for one that cannot be read."""
        try:
            return json.loads(self.manifest.read_text(encoding="utf-8")) if self.manifest.exists() else {}
        except ValueError:
            hint = "put it back as it was, or remove it: it says what the run was made with, and nothing depends on it"
            raise RunError("not a manifest", where=str(self.manifest), hint=hint) from None

    def check_recipe(self) -> None:
        """Raise RunError where recipe.yaml is not the one that the run began with, or was extended by."""
        made = self.made_with()
        known = [made[key] for key in ("recipe_sha256", "extends_sha256") if key in made]
        if known and _hash(self.recipe.read_text(encoding="utf-8")) not in known:
            raise RunError(
                "recipe.yaml was changed since the run began, and a run that has begun keeps its recipe",
                where=str(self.recipe),
                hint=f"put it back as it was, or start a new run with it: coterie train {self.recipe}",
            )

    def rewrite_recipe(self, text: str) -> None:
        """Replace the recipe of a run that is being extended."""
        made = self.made_with()
        if made:  # both are known in it, so that a stop between the two files loses nothing
            made |= {"recipe_sha256": _hash(text), "extends_sha256": _hash(self.recipe.read_text(encoding="utf-8"))}
            with replacing(self.manifest, "the manifest") as temporary:
                temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        with replacing(self.recipe, "the recipe") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def rollout_file(self, step: int, agent: str = "") -> Path:
        """Where the rollouts of a step are; those of one of several policies in a folder of its own."""
        folder = self.rollouts / agent if agent else self.rollouts
        folder.mkdir(exist_ok=True)
        return folder / f"step-{step:06d}.parquet"

    def set_status(self, state: State, step: int, message: str = "") -> None:
        """Say how the run stands. Atomic: a reader sees the old status or the new one."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        body = {"state": state, "step": step, "message": message, "pid": os.getpid(), "time": now}
        try:
            with replacing(self.status_file, "the status") as temporary:
                temporary.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        except RunError:
            if state != "failed":  # a full disk must not hide the failure being reported
                raise

    def status(self) -> dict[str, Any]:
        """The last status written; {} before the first."""
        return json.loads(self.status_file.read_text(encoding="utf-8")) if self.status_file.exists() else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that writes this run. Raises RunError while another one does.

        The system drops the lock when its process dies, however it dies, so a stale one cannot exist. It is a POSIX
        lock: forked workers do not inherit it, and would not keep a dead run locked.
        """
        key = self.path.resolve()
        if key in _HELD:
            raise RunError("this process is already writing this run", where=str(self.path), hint="wait for it to end")
        try:
            file = self.lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"the run could not be locked: {error.strerror}",
                where=str(self.path),
                hint="mend the permissions of the directory, or free space on its disk",
            ) from error
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise RunError(
                    f"another process is writing this run ({file.read().strip()})",
                    where=str(self.path),
                    hint="wait for it to end, or stop it",
                ) from error
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}")
            file.flush()
            _HELD.add(key)
            try:
                yield
            finally:
                _HELD.remove(key)


def manifest(recipe: str, *, task: str, method: str, seed: int) -> dict[str, Any]:
    """What a run was made with: versions, platform, commit of the working directory, seed, hash of the recipe."""
    versions = {"python": platform.python_version()}
    for name in ("coterie", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "recipe_sha256": _hash(recipe),
        "versions": versions,
        "platform": platform.platform(),
        "git_commit": (commit := _git("rev-parse", "HEAD")),
        "git_dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or the working directory is not a repository
    return done.stdout.strip()


@contextmanager
def _making(place: Path) -> Iterator[None]:
    """Turn a folder that cannot be made into a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the run directory could not be made: {error.strerror}",
            where=str(place),
            hint="choose a directory you may write to, on a disk with free space",
        ) from error
