"""A folder through which independent runs exchange rollouts as text: Parquet files, anywhere fsspec reaches."""

from __future__ import annotations

import json
import posixpath
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coterie.errors import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Shared:
    """What is shared of a group: the task's row, its completions as text, and which of them ended by themselves."""

    row: dict[str, Any]
    completions: tuple[str, ...]
    ended: tuple[bool, ...]


@dataclass
class SharedStore:
    """Files `NAME-NUMBER.parquet`, one a step of the run NAME. A file appears whole.

    A store that does not answer is asked again, ever more rarely, for `patience` seconds. `say` is told.
    """

    path: str
    name: str
    patience: float = 600.0
    pause: float = 1.0
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
    seen: set[str] = field(default_factory=set)
    """Files that were read, or were there before the run was."""
    waited: float = 0.0
    """Seconds spent waiting for the store."""

    def put(self, number: int, groups: Sequence[Shared]) -> None:
        """Let others have these groups."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                "row": [json.dumps(g.row, ensure_ascii=False, default=str) for g in groups],
                "completions": pa.array([list(g.completions) for g in groups], pa.list_(pa.string())),
                "ended": pa.array([list(g.ended) for g in groups], pa.list_(pa.bool_())),
            }
        )

        def write() -> None:
            files, folder = self._open()
            final = posixpath.join(folder, f"{self.name}-{number:08d}.parquet")
            hidden = posixpath.join(folder, f".{self.name}-{number:08d}")
            with files.open(hidden, "wb") as file:
                pq.write_table(table, file)
            files.mv(hidden, final)

        self._patiently("takes nothing", write)

    def new(self) -> list[Shared]:
        """Groups of other runs that were not read before. A file that is gone is passed over."""
        import pyarrow.parquet as pq

        found: list[Shared] = []
        for file in sorted(set(self._patiently("does not answer", self._list)) - self.seen):

            def read(name: str = file) -> list[Shared]:
                files, _ = self._open()
                if not files.exists(name):
                    return []
                with files.open(name, "rb") as opened:
                    rows = pq.read_table(opened).to_pylist()
                return [Shared(json.loads(r["row"]), tuple(r["completions"]), tuple(r["ended"])) for r in rows]

            found += self._patiently("does not answer", read)
            self.seen.add(file)
        return found

    def _list(self) -> list[str]:
        """The others' files."""
        files, folder = self._open()
        files.invalidate_cache()
        names = (posixpath.basename(f) for f in files.ls(folder, detail=False))
        hidden = (".", f"{self.name}-")
        return [posixpath.join(folder, n) for n in names if n.endswith(".parquet") and not n.startswith(hidden)]

    def _open(self) -> tuple[Any, str]:
        import fsspec

        try:
            files, folder = fsspec.core.url_to_fs(self.path)
        except (ImportError, ValueError) as error:
            raise RunError(str(error), where=self.path, hint="install what it names, or use another path") from error
        files.makedirs(folder, exist_ok=True)
        return files, folder

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        began, pause = time.monotonic(), self.pause
        while True:
            try:
                answer = call()
            except OSError as error:  # what file systems of fsspec raise, timeouts included
                waited = time.monotonic() - began
                if waited + pause > self.patience:
                    raise RunError(
                        f"the shared rollout store {what}, after {waited:.0f} s: {error}",
                        where=self.path,
                        hint="the last checkpoint is intact: mend the store, then `coterie resume RUN`",
                    ) from error
                self.say(f"the shared rollout store {self.path} {what} ({error}); trying again in {pause:g} s")
                time.sleep(pause)
                pause = min(2 * pause, 60.0)
            else:
                self.waited += time.monotonic() - began if pause != self.pause else 0.0
                return answer
