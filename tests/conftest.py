"""Common to all tests: one thread, hypothesis without a clock, so that runs are the same everywhere, and curves that
nobody looks at.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.pictures import dot

pytest_plugins = ["verification"]

settings.register_profile(
    "coterie", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("coterie")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def curves_as_dots() -> Iterator[None]:
    """Every panel of a run's curves is drawn with its metrics; their picture, which is matplotlib's work and costs more
    than a tiny run, is a dot. tests/observe and some runs of other processes have the real one.
    """
    from coterie.observe import curves

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "render", dot)
        yield


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Starts a Redis server, at the same place each time; the URL of a meeting on it."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> str:
        for process in running:
            process.kill()
            process.wait()
        settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--appendonly", "yes"]
        running[:] = [subprocess.Popen([program, *settings, "--appendfsync", "always"], stdout=subprocess.DEVNULL)]
        return f"redis://127.0.0.1:{port}/0#meeting"

    yield begin
    for process in running:
        process.kill()
        process.wait()
