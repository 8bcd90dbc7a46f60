"""A place through which independent runs exchange rollouts as text: Parquet in a folder, anywhere fsspec reaches, or in
Redis."""

from __future__ import annotations

import io
import json
import posixpath
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coterie.errors import RunError

T = TypeVar("T")
WEEK = 7 * 86400
"""Seconds for which Redis keeps what is shared."""


@dataclass(frozen=True)
class Shared:
    """What is shared of a group: the task's row, its completions as text, and which of them ended by themselves."""

    row: dict[str, Any]
    completions: tuple[str, ...]
    ended: tuple[bool, ...]


@dataclass
class SharedStore:
    """Files `NAME-NUMBER.parquet`, one a step of the run NAME, in a folder or in Redis. A file appears whole.

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
    _opened: Folder | Redis | None = None

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

        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self._patiently("takes nothing", lambda: self._place().write(f"{self.name}-{number:08d}", buffer.getvalue()))

    def new(self) -> list[Shared]:
        """Groups of other runs that were not read before. A file that is gone is passed over."""
        import pyarrow.parquet as pq

        found: list[Shared] = []
        for file in sorted(set(self._patiently("does not answer", self._list)) - self.seen):

            def read(name: str = file) -> bytes | None:
                return self._place().read(name)

            content = self._patiently("does not answer", read)
            if content is not None:
                rows = pq.read_table(io.BytesIO(content)).to_pylist()
                found += [Shared(json.loads(r["row"]), tuple(r["completions"]), tuple(r["ended"])) for r in rows]
            self.seen.add(file)
        return found

    def _list(self) -> list[str]:
        """The others' files."""
        return [name for name in self._place().names() if not posixpath.basename(name).startswith(f"{self.name}-")]

    def _place(self) -> Folder | Redis:
        if self._opened is None:
            redis = self.path.startswith(("redis://", "rediss://"))
            self._opened = Redis(self.path) if redis else Folder(self.path)
        return self._opened

    @property
    def shown(self) -> str:
        """The path without a password."""
        return re.sub(r"//[^/@]*@", "//", self.path)

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        began, pause = time.monotonic(), self.pause
        while True:
            try:
                answer = call()
            except _outages() as error:
                waited = time.monotonic() - began
                if waited + pause > self.patience:
                    raise RunError(
                        f"the shared rollout store {what}, after {waited:.0f} s: {error}",
                        where=self.shown,
                        hint="the last checkpoint is intact: mend the store, then `coterie resume RUN`",
                    ) from error
                self.say(f"the shared rollout store {self.shown} {what} ({error}); trying again in {pause:g} s")
                time.sleep(pause)
                pause = min(2 * pause, 60.0)
            else:
                self.waited += time.monotonic() - began if pause != self.pause else 0.0
                return answer


class Folder:
    """Files in a folder that fsspec knows."""

    def __init__(self, path: str) -> None:
        import fsspec

        try:
            self.files, self.folder = fsspec.core.url_to_fs(path)
        except (ImportError, ValueError) as error:
            raise RunError(str(error), where=path, hint="install what it names, or use another path") from error
        self.files.makedirs(self.folder, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        hidden = posixpath.join(self.folder, f".{name}")
        with self.files.open(hidden, "wb") as file:
            file.write(content)
        self.files.mv(hidden, posixpath.join(self.folder, f"{name}.parquet"))

    def names(self) -> list[str]:
        self.files.invalidate_cache()
        names = (posixpath.basename(file) for file in self.files.ls(self.folder, detail=False))
        return [posixpath.join(self.folder, n) for n in names if n.endswith(".parquet") and not n.startswith(".")]

    def read(self, name: str) -> bytes | None:
        """None if it is gone."""
        if not self.files.exists(name):
            return None
        with self.files.open(name, "rb") as file:
            return file.read()


class Redis:
    """Keys `MEETING:NAME` of the server at redis://HOST:PORT/DATABASE#MEETING, and the set MEETING of all names."""

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise RunError(
                "a meeting in Redis needs the package redis, which is not installed",
                where=url,
                hint="pip install 'coterie[redis]'",
            ) from error
        server, _, self.meeting = url.partition("#")
        self.meeting = self.meeting or "coterie"
        try:
            self.server: Any = redis.Redis.from_url(server, socket_timeout=60.0)
        except ValueError as error:
            raise RunError(str(error), where=url, hint="redis://HOST:PORT/DATABASE#MEETING") from error

    def write(self, name: str, content: bytes) -> None:
        with self.server.pipeline(transaction=True) as both:
            both.set(f"{self.meeting}:{name}", content, ex=WEEK)
            both.sadd(self.meeting, name)
            both.execute()

    def names(self) -> list[str]:
        return [name.decode() for name in self.server.smembers(self.meeting)]

    def read(self, name: str) -> bytes | None:
        """None if it is gone; then its name goes too."""
        content = self.server.get(f"{self.meeting}:{name}")
        if content is None:
            self.server.srem(self.meeting, name)
        return content


def _outages() -> tuple[type[Exception], ...]:
    """What stores raise that do not answer: OSError those of fsspec, timeouts included, and Redis, if it is in use, its
    own.
    """
    redis: Any = sys.modules.get("redis")
    return (OSError,) if redis is None else (OSError, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
