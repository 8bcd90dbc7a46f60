"""Common to all tests: one thread, hypothesis without a clock, so that runs are the same everywhere, and curves that
nobody looks at.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["verification"]

settings.register_profile(
    "coterie", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("coterie")
torch.set_num_threads(1)

DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
"""A picture of one dot."""


@pytest.fixture(scope="session", autouse=True)
def curves_as_dots() -> Iterator[None]:
    """Every panel of a run's curves is drawn with its metrics; their picture, which is matplotlib's work and costs more
    than a tiny run, is a dot. tests/observe and the runs of other processes have the real one.
    """
    from coterie.observe import curves

    def dot(figure: Any, file: Path) -> None:
        file.write_bytes(DOT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "render", dot)
        yield
