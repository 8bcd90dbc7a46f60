"""Coterie: group-relative policy optimization, every variant, one loop.

import coterie
run = coterie.train(model="path/or/hub-id", task="my.jsonl", rewards=[my_reward], method="grpo", steps=200)
advantages = coterie.credit.group_norm(rewards, groups)      # any piece, in anybody's trainer
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "credit",
    "selection",
    "objectives",
    "curriculum",
    "optim",
    "tasks",
    "rewards",
    "rollout",
    "methods",
    "pieces",
    "registry",
}
_NAMES = {
    "train": "coterie.api",
    "resume": "coterie.api",
    "Rollouts": "coterie.rollouts",
    "Sampling": "coterie.rollouts",
    "CoterieError": "coterie.errors",
    "Task": "coterie.tasks.base",
}

__all__ = [*sorted(_NAMES), *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    """Everything is imported when it is first used, so that `import coterie` costs nothing."""
    if name in _MODULES:
        return importlib.import_module(f"coterie.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'coterie' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
