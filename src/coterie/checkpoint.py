"""Atomic checkpoints: a folder appears under its final name complete, or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coterie.errors import RunError

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)(\.old)?")


class CheckpointStore:
    """The checkpoints of one run, `step-000040` and the like, of which the newest `keep` are kept."""

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory, self.keep = Path(directory), keep
        self.ignored: list[Path] = []
        """Folders the last call of `latest` passed over because they are incomplete or damaged."""

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a temporary folder, make it durable, then rename it into place and prune older ones.

        Raises RunError when the disk does not take it; earlier checkpoints are then untouched.
        """
        final = self.directory / f"step-{step:06d}"
        temporary = self.directory / f".tmp-{final.name}-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            _seal(temporary, step)
            self._move(temporary, final)
        except Exception as error:
            if not is_disk_error(error):
                raise
            raise self._failed(step, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint, every file checked against its recorded size and checksum; or None."""
        self.ignored = []
        for folder in self._folders():
            if is_complete(folder):
                return folder
            self.ignored.append(folder)
        return None

    def oldest(self) -> int:
        """Step of the oldest checkpoint there is, 0 before the first."""
        return min((int(_NAME.fullmatch(folder.name)[1]) for folder in self._folders()), default=0)  # type: ignore[index]

    def clean(self) -> list[Path]:
        """Remove what an interrupted save left behind. For the process that holds the run's lock.

        Saving and pruning never leave a partial folder under a checkpoint's name, so one that is not complete was
        damaged or edited later. It may be all that is left of a run: it is set aside as `damaged-step-000040`, never
        deleted; the answer names these folders. Raises RunError, and moves nothing, when there is no complete one to
        go on from.
        """
        for folder in self.directory.glob(".tmp-step-*"):
            shutil.rmtree(folder, ignore_errors=True)
        damaged = [folder for folder in self._folders() if not is_complete(folder)]
        if damaged and len(damaged) == len(self._folders()):
            raise RunError(
                f"no checkpoint is complete: files of {damaged[0].name} differ from its {MANIFEST}",
                where=str(self.directory),
                hint="put its files back as they were, or remove the folder to start the run over",
            )
        return [folder.rename(_free(folder.with_name(f"damaged-{folder.name}"))) for folder in damaged]

    def _folders(self) -> list[Path]:
        """Newest first. A `.old` is what a save of the same step was replacing when it stopped."""
        if not self.directory.is_dir():
            return []
        found = [(m, p) for p in self.directory.iterdir() if p.is_dir() and (m := _NAME.fullmatch(p.name))]
        return [p for _, p in sorted(found, key=lambda f: (int(f[0][1]), f[0][2] is None), reverse=True)]

    def _move(self, temporary: Path, final: Path) -> None:
        if final.exists():  # a folder cannot be renamed onto another: step aside first, never delete first
            aside = final.with_name(final.name + ".old")
            _remove(aside)
            final.rename(aside)
        temporary.rename(final)
        _sync(self.directory)

    def _prune(self) -> None:
        current = [f for f in self._folders() if not f.name.endswith(".old")]
        for folder in set(self._folders()) - set(current[: self.keep]):
            _remove(folder)

    def _failed(self, step: int, error: Exception) -> RunError:
        before = self.latest()
        reason = getattr(error, "strerror", None) or str(error)
        hint = f"free space on the disk or mend its permissions, then `coterie resume {self.directory.parent}`"
        if before is None:
            hint = "no earlier checkpoint exists; free space on the disk or mend its permissions, then start again"
        else:
            hint = f"the previous checkpoint {before.name} is intact; {hint}"
        message = f"the checkpoint of step {step} could not be written: {reason}"
        return RunError(message, where=str(self.directory), hint=hint)


def is_complete(folder: Path) -> bool:
    """Whether every file the manifest lists is there, with the size and checksum it had when it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(
            (folder / name).stat().st_size == size and _checksum(folder / name) == checksum
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def is_disk_error(error: BaseException) -> bool:
    """Whether a failed write is the disk's doing. Writers in Rust raise errors of their own, whose text tells."""
    return isinstance(error, OSError) or "(os error " in str(error)


def save_state(path: str | Path, state: Any) -> None:
    """Write nested state: dict (int keys too), list, tuple, str, int, float, bool, None and Tensor.

    Raises OSError when the disk does not take it.
    """
    import torch

    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # closing the archive after a failed write hides why the write failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(path: str | Path) -> Any:
    """What `save_state` wrote, on the CPU. Nothing in the file is executed."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _remove(folder: Path) -> None:
    """Delete a checkpoint. It loses its name first, so that a half-deleted one is never taken for a checkpoint."""
    doomed = _free(folder.with_name(f".tmp-{folder.name}-removed"))
    with contextlib.suppress(OSError):  # not there, or not ours to delete: as before, that is no reason to stop a run
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _free(path: Path) -> Path:
    """`path`, numbered when it is taken."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2)))
    return next(p for p in names if not p.exists())


def _seal(folder: Path, step: int) -> None:
    """Record sizes and checksums, and make folder and contents durable."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        _sync(path)
    listed = {p.relative_to(folder).as_posix(): [p.stat().st_size, _checksum(p)] for p in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": listed}, indent=1), encoding="utf-8")
    for path in (manifest, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        _sync(path)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
