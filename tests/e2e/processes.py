"""The command line in processes of its own that are forked from one which has imported everything: they begin at once,
and may be killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing.forkserver import ensure_running
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.e2e.warm"])
ROOT = Path(__file__).parents[2]


class Command:
    """`coterie ARGS`, under way. Curves are a dot, as in the tests' own process, or the `picture` itself."""

    def __init__(self, *args: str, picture: bool = False) -> None:
        file, name = tempfile.mkstemp()
        os.close(file)
        self.said = Path(name)
        """What it printed."""
        weakref.finalize(self, os.unlink, name)
        with contextlib.chdir(ROOT):  # elsewhere the server finds nothing to import, says nothing, and each is slow
            ensure_running()
        self._process = CONTEXT.Process(target=_run, args=(args, str(self.said), picture))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def over(self) -> bool:
        return not self._process.is_alive()

    def wait(self, seconds: float) -> int | None:
        """The exit code; None where it is not over by then."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _run(args: tuple[str, ...], said: str, picture: bool) -> None:
    from coterie.cli import main
    from coterie.observe import curves
    from tests.pictures import dot

    if not picture:
        curves.render = dot
    file = os.open(said, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["coterie", *args]
    main()


def finish(*args: str, picture: bool = False) -> None:
    """Run it to its end, which must be a good one."""
    command = Command(*args, picture=picture)
    assert command.wait(120) == 0, command.said.read_text()


def wait_for(run: Path, over: Callable[[], bool], pattern: str) -> None:
    """Until a file of the run matches; a run that ends first is left alone."""
    end = time.monotonic() + 60
    while not over() and not any(run.glob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.002)
