"""Tables to test pieces on, made from the vocabulary: random ones and one for each way of being degenerate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.columns import COLUMNS

B, T, U, BUDGET = 12, 7, 3, 9
KINDS = (
    "random",
    "binary",
    "group_of_one",
    "all_equal",
    "one_odd",
    "all_truncated",
    "empty_rows",
    "huge_ratios",
    "one_row",
)
LABELS = {"random": (7, -3, 100, 4), "group_of_one": tuple(range(B)), "one_odd": (5, 2), "empty_rows": (3, 1, 2)}


def _logp(rng: np.random.Generator, t: dict[str, Any]) -> np.ndarray:
    return -rng.exponential(1.0, t["mask"].shape) - 0.01


# Columns that are not simply random numbers of their dtype. Later ones may read earlier ones.
SPECIAL: dict[str, Any] = {
    "mask": lambda rng, t: rng.random((B, T)) < 0.75,
    "lengths": lambda rng, t: t["mask"].sum(-1),
    "answers": lambda rng, t: rng.integers(0, 4, len(t["mask"])),
    "answer_mask": lambda rng, t: t["mask"] & (rng.random(t["mask"].shape) < 0.4),
    "matched": lambda rng, t: t["mask"] & (rng.random(t["mask"].shape) < 0.4),
    "logp_old": _logp,
    "logp_ref": _logp,
    "logp_min_p": lambda rng, t: np.where(rng.random(t["mask"].shape) < 0.2, -np.inf, 0.9 * t["logp_old"]),
    "logp_tempered": lambda rng, t: t["logp_old"] + 0.2 * rng.standard_normal(t["mask"].shape),
    "logp_train": lambda rng, t: t["logp_old"] + 0.3 * np.sin(9 * t["logp_old"]),  # draws nothing of its own
    "logp_teacher": _logp,
    "kl_shown": lambda rng, t: 0.3 + 0.3 * np.sin(5 * t["logp_old"]),
    "entropy_shown": lambda rng, t: 1 + np.sin(3 * t["logp_old"]),
    "hidden_square": lambda rng, t: 3 + 2 * np.sin(7 * t["logp_old"]),
    "score_square": lambda rng, t: 1.3 * (1 - np.exp(t["logp_old"])) ** 2,
    "score_variance": lambda rng, t: 0.4 * (1 - np.exp(t["logp_old"])) ** 2,
    "logp": lambda rng, t: t["logp_old"] + 0.35 * rng.standard_normal(t["mask"].shape),
    "spread": lambda rng, t: rng.exponential(1.0, t["mask"].shape),
    "entropy": lambda rng, t: rng.exponential(1.0, t["mask"].shape),
    "kl_ref": lambda rng, t: rng.exponential(0.1, t["mask"].shape),
    "best_gap": lambda rng, t: 0.2 * np.abs(np.sin(5 * t["logp_old"])),
    "fine_gap": lambda rng, t: 0.2 * np.abs(np.cos(4 * t["logp_old"])),
    "mean_gap": lambda rng, t: rng.exponential(0.1, t["mask"].shape),
    "step_std": lambda rng, t: rng.uniform(0.1, 1.0, t["mask"].shape),
    "step_size": lambda rng, t: rng.uniform(0.05, 0.2, t["mask"].shape),
    "step_gain": lambda rng, t: 0.1 + 0.9 * t["step_size"],
    "ratio": lambda rng, t: rng.lognormal(0.0, 0.3, t["mask"].shape),
    "weights": lambda rng, t: rng.choice([0.0, 1.0, 1.0, 0.5], len(t["mask"])),
    "token_rewards": lambda rng, t: last(t["mask"]) * t["rewards"][:, None],
    "pass_index": lambda rng, t: rng.integers(0, 4, t["mask"].shape),
    "passes": lambda rng, t: 4 + 0 * t["groups"],
    "turn": lambda rng, t: turns(rng.integers(0, 5, t["mask"].shape), t["mask"]),
    "parent": lambda rng, t: parents(t["groups"]),
    "branch": lambda rng, t: np.where(t["parent"] == np.arange(B), -1, rng.integers(0, 5, B)),
    "ran": lambda rng, t: np.arange(B) % 3 - 1,
    "heat": lambda rng, t: rng.choice([1.0, 1.0, 1.2], B),
    "given": lambda rng, t: t["mask"] & (rng.random(t["mask"].shape) < 0.4),
    "anchor": lambda rng, t: rng.random(B) < 0.25,
    "prompt_index": lambda rng, t: t["groups"] % 3,
    "drift": lambda rng, t: np.array([0.0, 0.02, 0.3])[t["prompt_index"]],
    "step": lambda rng, t: 3,
    "budget": lambda rng, t: BUDGET,
    "reward_weights": lambda rng, t: {"exact": 1.0, "format": 0.5},
    "components": lambda rng, t: {"exact": t["rewards"].copy(), "format": rng.standard_normal(len(t["mask"]))},
}
FIRST = ("groups", "rewards", "mask", "logp_old")


def turns(draws: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Up to U turns a row, numbered from 0, a new one where 0 was drawn; -1 where masked."""
    out = np.full(mask.shape, -1)
    for i in range(len(mask)):
        turn = -1
        for t in np.nonzero(mask[i])[0]:
            turn += turn < 0 or (draws[i, t] == 0 and turn < U - 1)
            out[i, t] = turn
    return out


def parents(groups: np.ndarray) -> np.ndarray:
    """Every third rollout was forked from the first of its group."""
    first = np.array([list(groups).index(g) for g in groups])
    return np.where(np.arange(len(groups)) % 3 == 1, first, np.arange(len(groups)))


def last(mask: np.ndarray) -> np.ndarray:
    """Each row's last decision."""
    out = np.zeros(mask.shape, dtype=bool)
    for i in range(len(mask)):
        where = np.nonzero(mask[i])[0]
        if len(where):
            out[i, where[-1]] = True
    return out


def table(kind: str = "random", seed: int = 0) -> dict[str, Any]:
    """Every column of the vocabulary, float64 NumPy."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    t: dict[str, Any] = {}
    labels = LABELS.get(kind, (0, 1, 2))
    t["groups"] = rng.permutation(np.resize(labels, B))
    t["rewards"] = rng.standard_normal(B)
    t["mask"] = SPECIAL["mask"](rng, t)
    t["mask"][:, 0] = True
    if kind in ("binary", "one_odd", "all_equal"):
        t["rewards"] = (rng.random(B) < 0.5).astype(float)
    if kind == "all_equal":
        t["rewards"] = np.full(B, 0.1)
    if kind == "one_odd":
        t["rewards"] = np.full(B, 0.3)
        t["rewards"][rng.integers(B)] = 0.7
    if kind == "all_truncated":
        t["mask"][:] = True
    if kind == "empty_rows":
        t["mask"][[1, 5]] = False
    for name in sorted(COLUMNS, key=lambda n: (FIRST + (n,)).index(n)):
        if name in t:
            continue
        column, dims = COLUMNS[name], {"B": B, "T": T, "U": U}
        if name in SPECIAL:
            t[name] = SPECIAL[name](rng, t)
            continue
        shape = tuple(dims[axis] for axis in column.shapes[0].split())
        draw = {"int": lambda s: rng.integers(0, 5, s), "bool": lambda s: rng.random(s) < 0.5}
        t[name] = draw.get(column.dtype, rng.standard_normal)(shape)
    if kind == "huge_ratios":
        t["logp"] = t["logp_old"] + rng.choice([-30.0, 30.0, 0.1, -0.1], t["mask"].shape)
        t["logp_ref"] = t["logp"] + rng.choice([-30.0, 30.0, 0.1, -0.1], t["mask"].shape)
        t["logp_train"] = t["logp_old"] + 100 * np.sin(9 * t["logp_old"])
    if kind == "all_truncated":
        t["truncated"][:] = True
    if kind in ("all_truncated", "all_equal"):
        t["weights"][:] = 0.0
    if kind == "one_row":
        t = {n: v if COLUMNS[n].shapes == ("scalar",) else rows(v, np.array([0])) for n, v in t.items()}
    return t


def rows(value: Any, index: np.ndarray) -> Any:
    """Some rows of a column."""
    return {k: v[index] for k, v in value.items()} if isinstance(value, dict) else value[index]


def tensors(t: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The table as the loop holds it."""

    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: one(v) for k, v in value.items()}
        if np.ndim(value) == 0:
            return value
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return {name: one(value) for name, value in t.items()}


def garbage(name: str, value: Tensor, mask: Tensor) -> Tensor:
    """The column with the worst there is wherever the mask is off: NaN, or an absurd integer."""
    if not isinstance(value, Tensor) or value.shape != mask.shape or name == "mask":
        return value
    bad = float("nan") if value.is_floating_point() else (True if value.dtype == torch.bool else -99)
    return torch.where(mask, value, torch.full_like(value, bad))


def scalar(value: Tensor, coefficients: Tensor) -> Tensor:
    """What the update makes of a piece's [B] or [B,T] value: masked by, and weighted with, the coefficients."""
    if value.dim() == 1:
        return (value * coefficients.sum(-1)).sum()
    return (torch.where(coefficients != 0, value, torch.zeros_like(value)) * coefficients).sum()
