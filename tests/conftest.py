"""Common to all tests: one thread, and hypothesis without a clock, so that runs are the same everywhere."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["verification"]

settings.register_profile(
    "coterie", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("coterie")
torch.set_num_threads(1)
