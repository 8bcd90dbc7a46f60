"""What tests of objectives have in common: a loss against its oracle, its gradient, and the worst that may come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from oracles import inputs
from oracles.aggregations import chain, coefficients
from torch import Tensor

from coterie.objectives import ratios, trust_regions
from coterie.objectives.aggregations import constant, sequence, token

Value = Callable[[dict[str, Any]], Tensor]
"""A table of tensors to the loss, [B] or [B,T]."""
Oracle = Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray]]
"""A table of arrays to the loss, [B] or [B,T], and its derivative by each log-prob, [B,T]. Where the loss of a decision
depends on others of its rollout: [B,T,T], of decision t by the log-prob of decision u."""
AGGREGATIONS: dict[str, Value] = {
    "token": lambda t: token(t["weights"], t["mask"], t["groups"]),
    "sequence": lambda t: sequence(t["weights"], t["mask"], t["groups"]),
    "constant": lambda t: constant(t["weights"], t["mask"], t["budget"]),
}


def surrogate(ratio: str, region: str, *columns: str, **settings: Any) -> Value:
    """The loss of a ratio under a trust region that reads these columns beside ratio and advantages."""

    def value(t: dict[str, Any]) -> Tensor:
        r = getattr(ratios, ratio)(t["logp"], t["logp_old"], t["mask"])
        return -getattr(trust_regions, region)(r, t["advantages"], *(t[c] for c in columns), **settings)

    return value


def differentiate(value: Value, t: dict[str, Any], aggregation: str) -> tuple[float, np.ndarray, Tensor]:
    """The loss of the update, its gradient by logp, and the piece's value."""
    t = t | {"logp": t["logp"].clone().requires_grad_()}
    out = value(t)
    loss = inputs.scalar(out, AGGREGATIONS[aggregation](t))
    (gradient,) = torch.autograd.grad(loss, t["logp"])
    return float(loss.detach()), gradient.double().numpy(), out.detach()


def compare(
    value: Value, oracle: Oracle, n: dict[str, Any], dtype: torch.dtype = torch.float64, tolerance: float = 1e-10
) -> None:
    """Value and gradient are the oracle's under every aggregation, with NaN wherever the mask is off."""
    wanted, derivative = oracle(n)
    t = inputs.tensors(n, dtype)
    t = {name: inputs.garbage(name, v, t["mask"]) if name in FILTHY else v for name, v in t.items()}
    for name in AGGREGATIONS:
        c = coefficients(name, n["weights"], n["mask"], n["groups"], length=inputs.BUDGET)
        loss, gradient, out = differentiate(value, t, name)
        wanted_loss, wanted_gradient = chain(wanted, derivative if derivative.ndim == 2 else 0 * c, c)
        if derivative.ndim == 3:
            wanted_gradient = np.array(
                [[c[i] @ by[:, u] for u in range(c.shape[1])] for i, by in enumerate(derivative)]
            )
        scale = max(1.0, float(np.abs(wanted_gradient).max()), abs(wanted_loss))
        assert abs(loss - wanted_loss) <= tolerance * scale, name
        np.testing.assert_allclose(gradient, wanted_gradient, rtol=tolerance, atol=tolerance * scale)
        assert (gradient[~n["mask"]] == 0).all()
        assert out.dtype == dtype and out.shape == wanted.shape


FILTHY = ("logp", "logp_old", "logp_ref", "entropy_old")


def check_gradient(value: Value, n: dict[str, Any]) -> None:
    """torch's numerical Jacobian is the code's."""
    t = inputs.tensors(n)
    x = t["logp"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logp: value(t | {"logp": logp}), x, atol=1e-5)


def survives(value: Value) -> None:
    """Log-ratios of +-14, -inf where the mask is off, rows without a decision, bfloat16: all stays finite."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for kind in ("empty_rows", "one_row"):
            t = inputs.tensors(inputs.table(kind), dtype)
            jump = torch.where(torch.arange(t["mask"].shape[1]) % 2 == 0, 14.0, -14.0).to(dtype)
            t["logp"] = (t["logp_old"] + jump).masked_fill(~t["mask"], -torch.inf)
            t["logp_old"] = t["logp_old"].masked_fill(~t["mask"], -torch.inf)
            for name in AGGREGATIONS:
                loss, gradient, out = differentiate(value, t, name)
                assert out.dtype == dtype and np.isfinite(loss) and np.isfinite(gradient).all()
                assert (gradient[~t["mask"].numpy()] == 0).all()


def example(ratio: list[list[float]], advantages: Any, lengths: list[int], old: float = -1.0) -> dict[str, Any]:
    """Rollouts of one group with log-probs `old` when sampled and these ratios now."""
    r = np.array(ratio)
    mask = np.arange(r.shape[1])[None] < np.array(lengths)[:, None]
    before = np.full(r.shape, old)
    n = {"mask": mask, "logp_old": before, "logp": before + np.log(r), "advantages": np.array(advantages, dtype=float)}
    n |= {"weights": np.ones(len(r)), "groups": np.zeros(len(r), dtype=int), "lengths": mask.sum(-1), "budget": 4}
    return inputs.tensors(n)


def compare_groups(
    value: Value, oracle: Callable[[dict[str, Any]], tuple[dict[int, float], dict[int, np.ndarray]]], n: dict[str, Any],
    tolerance: float = 1e-9,
) -> None:  # fmt: skip
    """A loss whose value at each rollout is its group's: values and gradients by group, NaN where the mask is off."""
    values, slopes = oracle(n)
    t = inputs.tensors(n)
    t = {name: inputs.garbage(name, v, t["mask"]) if name in FILTHY else v for name, v in t.items()}
    t["logp"].requires_grad_()
    got = value(t)
    want = np.array([values[int(g)] for g in n["groups"]])
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=tolerance, atol=tolerance)
    for g, slope in slopes.items():
        first = int(np.nonzero(n["groups"] == g)[0][0])
        (gradient,) = torch.autograd.grad(got[first], t["logp"], retain_graph=True)
        size = max(1.0, float(np.abs(slope).max()))
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=tolerance, atol=tolerance * size)
