"""A place where independent runs meet: named bytes in a folder, anywhere fsspec reaches, or in Redis. What does not
answer is waited for."""

from __future__ import annotations

import posixpath
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from coterie.errors import RunError

T = TypeVar("T")
WEEK = 7 * 86400
"""Seconds for which Redis keeps what is put there."""
MOST = 512 * 2**20
"""Bytes that Redis takes under one name."""


@dataclass
class Place:
    """Named bytes that several runs see. What is put there appears whole, in the place of what had the name.

    A place that does not answer is asked again, ever more rarely, for `patience` seconds. `say` is told.
    """

    path: str
    patience: float = 600.0
    pause: float = 1.0
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
    waited: float = 0.0
    """Seconds spent waiting for it to answer."""
    _opened: Folder | Redis | None = None

    def put(self, name: str, content: bytes) -> None:
        self._patiently("takes nothing", lambda: self._open().write(name, content))

    def names(self) -> list[str]:
        """What is there, in no order."""
        return self._patiently("does not answer", lambda: self._open().names())

    def get(self, name: str) -> bytes | None:
        """None if it is not there."""
        return self._patiently("does not answer", lambda: self._open().read(name))

    def remove(self, name: str) -> None:
        """It need not be there."""
        self._patiently("does not answer", lambda: self._open().remove(name))

    @property
    def shown(self) -> str:
        """The path without a password."""
        return re.sub(r"//[^/@]*@", "//", self.path)

    def _open(self) -> Folder | Redis:
        if self._opened is None:
            redis = self.path.startswith(("redis://", "rediss://"))
            self._opened = Redis(self.path) if redis else Folder(self.path)
        return self._opened

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
        self.files.mv(hidden, self._file(name))

    def names(self) -> list[str]:
        self.files.invalidate_cache()
        names = (posixpath.basename(file) for file in self.files.ls(self.folder, detail=False))
        return [name for name in names if not name.startswith(".")]

    def read(self, name: str) -> bytes | None:
        try:
            with self.files.open(self._file(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        try:
            self.files.rm_file(self._file(name))
        except FileNotFoundError:
            return

    def _file(self, name: str) -> str:
        return posixpath.join(self.folder, name)


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
        if len(content) > MOST:
            raise RunError(
                f"{name} has {len(content) / 2**20:.0f} MiB, and Redis takes 512 under one name",
                hint="meet in a folder, or at a URL that fsspec knows",
            )
        with self.server.pipeline(transaction=True) as both:
            both.set(f"{self.meeting}:{name}", content, ex=WEEK)
            both.sadd(self.meeting, name)
            both.execute()

    def names(self) -> list[str]:
        return [name.decode() for name in self.server.smembers(self.meeting)]

    def read(self, name: str) -> bytes | None:
        """Of what is gone the name goes too."""
        content = self.server.get(f"{self.meeting}:{name}")
        if content is None:
            self.server.srem(self.meeting, name)
        return content

    def remove(self, name: str) -> None:
        with self.server.pipeline(transaction=True) as both:
            both.delete(f"{self.meeting}:{name}")
            both.srem(self.meeting, name)
            both.execute()


def _outages() -> tuple[type[Exception], ...]:
    """What stores raise that do not answer: OSError those of fsspec, timeouts included, and Redis, if it is in use, its
    own.
    """
    redis: Any = sys.modules.get("redis")
    return (OSError,) if redis is None else (OSError, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
