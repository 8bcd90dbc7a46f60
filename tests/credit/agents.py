"""Tables of episodes for the tests of credit by turn: one decision a turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from oracles import inputs

COLUMNS = ("rewards", "groups", "step_rewards", "state_key", "turn", "mask")


def table(
    step_rewards: list[list[float]],
    states: list[list[int]] | None = None,
    groups: list[int] | None = None,
    rewards: list[float] | None = None,
) -> dict[str, torch.Tensor]:
    width, n = max(map(len, step_rewards)), len(step_rewards)
    turn = torch.tensor([[*range(len(r)), *[-1] * (width - len(r))] for r in step_rewards])
    keys = states or [[100 * i + u for u in range(len(r))] for i, r in enumerate(step_rewards)]
    return {
        "rewards": torch.tensor(rewards or [sum(r) for r in step_rewards], dtype=torch.float64),
        "groups": torch.tensor(groups or [0] * n),
        "step_rewards": torch.tensor([[*r, *[9.0] * (width - len(r))] for r in step_rewards], dtype=torch.float64),
        "state_key": torch.tensor([[*k, *[-1] * (width - len(k))] for k in keys]),
        "turn": turn,
        "mask": turn >= 0,
    }


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(
        got.double().numpy(), np.asarray(want).reshape(got.shape), rtol=tolerance, atol=tolerance
    )


def random(kind: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A table of the vocabulary with few states, some decisions in no turn, and some turns in no state."""
    n, rng = inputs.table(kind, seed), np.random.default_rng(seed)
    n["state_key"] = rng.integers(-1, 2, n["state_key"].shape)
    n["turn"] = np.where(np.arange(n["turn"].shape[1]) < seed, -1, n["turn"])
    return n, inputs.tensors(n)


lists = st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=4), min_size=2, max_size=6)
