"""Value and gradient of every objective, through ratio, trust region and aggregation, against the oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles import inputs
from oracles.aggregations import chain, coefficients
from oracles.cispo import cispo
from oracles.grpo import clipped_loss
from oracles.gspo import gspo, gspo_token
from oracles.kl import kl_term
from oracles.opmd import opmd_sequence, opmd_token
from oracles.reinforce import reinforce
from torch import Tensor

from coterie.errors import ShapeError
from coterie.objectives import losses, ratios, terms, trust_regions
from coterie.objectives.aggregations import constant, sequence, token


def surrogate(ratio: str, region: str = "ppo_clip", **settings: Any) -> Callable[[dict[str, Any]], Tensor]:
    """The loss of a ratio and a trust region, as the update composes them."""

    def value(t: dict[str, Any]) -> Tensor:
        r = getattr(ratios, ratio)(t["logp"], t["logp_old"], t["mask"])
        extra = (t["logp"], t["mask"]) if region == "cispo" else ()
        return -getattr(trust_regions, region)(r, t["advantages"], *extra, **settings)

    return value


def whole(name: str, **settings: Any) -> Callable[[dict[str, Any]], Tensor]:
    return lambda t: getattr(losses, name)(t["logp"], t["logp_old"], t["advantages"], t["mask"], **settings)


def kl(**settings: Any) -> Callable[[dict[str, Any]], Tensor]:
    return lambda t: terms.kl(t["logp"], t["logp_ref"], t["logp_old"], t["mask"], **settings)


def on(fn: Callable[..., Any], **settings: Any) -> Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray]]:
    return lambda n: fn(n["logp"], n["logp_old"], n["advantages"], n["mask"], **settings)


def on_kl(coef: float, estimator: str, importance: bool) -> Callable[[dict[str, Any]], Any]:
    return lambda n: kl_term(n["logp"], n["logp_ref"], n["logp_old"], n["mask"], coef, estimator, importance)


UNCLIPPED = {"eps_low": 1e9, "eps_high": 1e9}
CLIPS = [{}, {"eps_low": 0.2, "eps_high": 0.28}, {"eps_low": 0.4, "eps_high": 0.05}, {"dual": 3.0}, {"dual": 1.25}]
WIDE = {"eps_low": 0.02, "eps_high": 0.1}
CASES: dict[str, tuple[Any, Any]] = {f"ppo_clip-{s}": (surrogate("token", **s), on(clipped_loss, **s)) for s in CLIPS}
CASES |= {
    "unclipped": (surrogate("token", "unclipped"), on(clipped_loss, **UNCLIPPED)),
    "gspo": (surrogate("sequence", eps_low=3e-4, eps_high=4e-4), on(gspo)),
    "gspo-wide": (surrogate("sequence", **WIDE), on(gspo, **WIDE)),
    "gspo_token": (surrogate("sequence_token", eps_low=3e-4, eps_high=4e-4), on(gspo_token)),
    "gspo_token-wide": (surrogate("sequence_token", **WIDE), on(gspo_token, **WIDE)),
    "cispo": (surrogate("token", "cispo"), on(cispo)),
    "cispo-tight": (
        surrogate("token", "cispo", max_ratio=1.1, min_ratio=0.8),
        on(cispo, max_ratio=1.1, min_ratio=0.8),
    ),
    "opmd": (whole("opmd"), on(opmd_sequence)),
    "opmd-0.2": (whole("opmd", tau=0.2), on(opmd_sequence, tau=0.2)),
    "opmd-token": (whole("opmd", tau=0.5, level="token"), on(opmd_token, tau=0.5)),
}
for clip in ("none", "one_side", "two_side", "ring"):
    for weight in ("none", "ratio"):
        for bounds in ({}, {"eps_low": 0.1, "eps_high": 0.3, "ring_low": 0.3, "ring_high": 0.5}):
            chosen: dict[str, Any] = {"clip": clip, "weight": weight, **bounds}
            CASES[f"reinforce-{clip}-{weight}-{len(bounds)}"] = (whole("reinforce", **chosen), on(reinforce, **chosen))
for start, chosen in {
    "rec-gspo": {"clip": "one_side", "weight": "ratio", "level": "sequence", "eps_low": 3e-4, "eps_high": 4e-4},
    "rec-gspo-wide": {"clip": "ring", "level": "sequence", "eps_low": 0.02, "eps_high": 0.1, "ring_low": 0.1},
    "red-weight": {"weight": "advantage"},
    "red-weight-warm": {"weight": "advantage", "temperature": 3.0, "clip": "two_side"},
}.items():
    CASES[start] = (whole("reinforce", **chosen), on(reinforce, **chosen))
for estimator in ("k1", "k2", "k3"):
    for importance in (False, True):
        pair = kl(coef=0.3, estimator=estimator, importance=importance), on_kl(0.3, estimator, importance)
        CASES[f"kl-{estimator}-{importance}"] = pair

# Beginning of a case's name -> the methods whose objective it is.
METHODS = {
    "ppo_clip-": ("grpo", "dapo", "dr-grpo", "ppo-clip", "reinforce++", "reinforce++-baseline"),
    "gspo": ("gspo",),
    "gspo_token": ("gspo-token",),
    "cispo": ("cispo",),
    "opmd": ("opmd",),
    "reinforce-none-none": ("asymre", "rloo"),
    "reinforce-one_side-none": ("rec-oneside",),
    "reinforce-ring-none": ("rec-ring",),
    "rec-gspo": ("rec-gspo-oneside",),
    "red-weight": ("red-weight",),
    "kl-": ("kl",),
}


def marked(case: str) -> Any:
    slugs = next((METHODS[start] for start in sorted(METHODS, key=len)[::-1] if case.startswith(start)), ())
    return pytest.param(case, id=case, marks=pytest.mark.oracle(*slugs))


AGGREGATIONS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "token": lambda t: token(t["weights"], t["mask"], t["groups"]),
    "sequence": lambda t: sequence(t["weights"], t["mask"], t["groups"]),
    "constant": lambda t: constant(t["weights"], t["mask"], t["budget"]),
}
ROLLOUT_ONLY = ("gspo-", "gspo")


def differentiate(value: Any, aggregation: str, t: dict[str, Any]) -> tuple[float, np.ndarray, Tensor]:
    t = t | {"logp": t["logp"].clone().requires_grad_()}
    out = value(t)
    loss = inputs.scalar(out, AGGREGATIONS[aggregation](t))
    loss.backward()
    return float(loss.detach()), t["logp"].grad.numpy(), out.detach()


def compare(case: str, n: dict[str, Any], dtype: torch.dtype = torch.float64, tolerance: float = 1e-11) -> None:
    value, oracle = CASES[case]
    wanted_value, derivative = oracle(n)
    t = inputs.tensors(n, dtype)
    t |= {name: inputs.garbage(name, t[name], t["mask"]) for name in ("logp", "logp_old", "logp_ref")}
    for aggregation in AGGREGATIONS:
        c = coefficients(aggregation, n["weights"], n["mask"], n["groups"], length=inputs.BUDGET)
        loss, gradient, out = differentiate(value, aggregation, t)
        wanted_loss, wanted_gradient = chain(wanted_value, derivative, c)
        scale = max(1.0, float(np.abs(wanted_gradient).max()), abs(wanted_loss))
        assert abs(loss - wanted_loss) <= tolerance * scale, (case, aggregation)
        np.testing.assert_allclose(gradient, wanted_gradient, rtol=tolerance, atol=tolerance * scale)
        assert (gradient[~n["mask"]] == 0).all()
        assert out.dtype == dtype and out.shape == wanted_value.shape
        assert out.isfinite().all()
        live = n["mask"] if out.dim() == 2 else np.ones(len(n["mask"]), dtype=bool)
        np.testing.assert_allclose(
            out.numpy()[live], wanted_value[live], rtol=tolerance, atol=tolerance * max(1.0, np.abs(wanted_value).max())
        )


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_value_and_gradient(case: str, kind: str) -> None:
    for seed in range(2):
        compare(case, inputs.table(kind, seed))


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith(ROLLOUT_ONLY) or c.startswith("gspo_token")])
def test_value_and_gradient_with_an_advantage_a_decision(case: str) -> None:
    for seed in range(2):
        n = inputs.table("random", seed)
        n["advantages"] = np.random.default_rng(seed).standard_normal(n["mask"].shape)
        compare(case, n)


@pytest.mark.parametrize("case", CASES)
def test_float32(case: str) -> None:
    compare(case, inputs.table("random", 3), torch.float32, 3e-5)


SMOOTH = ["unclipped", "gspo-wide", "opmd", "opmd-token", *(c for c in CASES if c.startswith("kl-"))]


@pytest.mark.parametrize("case", SMOOTH)
def test_gradcheck_and_the_oracles_own_derivative(case: str) -> None:
    """Central differences of the oracle's value are its derivative, and torch's numerical Jacobian is the code's."""
    n = inputs.table("random", 5)
    value, oracle = CASES[case]
    c = coefficients("token", n["weights"], n["mask"], n["groups"])
    _, gradient = chain(*oracle(n), c)
    h = 1e-6
    for i, t in zip(*np.nonzero(n["mask"]), strict=True):
        step = np.zeros(n["mask"].shape)
        step[i, t] = h
        up, down = (chain(*oracle(n | {"logp": n["logp"] + s * step}), c)[0] for s in (1, -1))
        assert abs((up - down) / (2 * h) - gradient[i, t]) < 1e-7 * max(1, abs(gradient[i, t]))
    tensors = inputs.tensors(n)
    assert torch.autograd.gradcheck(
        lambda x: value(tensors | {"logp": x}), tensors["logp"].clone().requires_grad_(), atol=1e-5
    )


def table_of(ratio: list[list[float]], advantages: list[float], lengths: list[int]) -> dict[str, Any]:
    """The catalogue's example: log-probs of -1 when sampled, and these ratios now."""
    r = np.array(ratio)
    mask = np.arange(r.shape[1])[None] < np.array(lengths)[:, None]
    old = np.full(r.shape, -1.0)
    n = {"mask": mask, "logp_old": old, "logp": old + np.log(r), "advantages": np.array(advantages)}
    n |= {"weights": np.ones(len(r)), "groups": np.zeros(len(r), dtype=int), "budget": 4}
    return inputs.tensors(n)


EXAMPLE = table_of([[1.5, 1.0], [0.5, 1.0]], [1.0, -1.0], [2, 1])


def check_example(value: Any, aggregation: str, loss: float | None, gradient: Any, t: Any = EXAMPLE) -> None:
    got, g, _ = differentiate(value, aggregation, t)
    if loss is not None:
        assert got == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(g, gradient, atol=1e-6)


class TestNumbersOfTheSources:
    """Ratios [[1.5, 1], [.5, -]], advantages [1, -1], clip .2."""

    def test_grpo(self) -> None:
        check_example(surrogate("token"), "sequence", -0.15, [[0, -0.25], [0, 0]])

    def test_dapo(self) -> None:
        check_example(surrogate("token"), "token", -0.466667, [[0, -1 / 3], [0, 0]])
        check_example(surrogate("token", eps_low=0.2, eps_high=0.28), "token", -0.493333, [[0, -1 / 3], [0, 0]])

    def test_dr_grpo(self) -> None:
        check_example(surrogate("token"), "constant", -0.175, [[0, -0.125], [0, 0]])
        halved = EXAMPLE | {"advantages": EXAMPLE["advantages"] / 2}
        check_example(surrogate("token"), "constant", -0.0875, [[0, -0.0625], [0, 0]], halved)

    def test_gspo(self) -> None:
        check_example(surrogate("sequence", eps_low=3e-4, eps_high=4e-4), "sequence", -0.00035, np.zeros((2, 2)))
        logp = torch.tensor([[0.2, 0.0, 0.1]], dtype=torch.float64)
        s = ratios.sequence(logp, logp * 0, torch.ones(1, 3, dtype=torch.bool))
        assert s.shape == (1,) and float(s) == pytest.approx(1.10517, abs=1e-5)

    def test_cispo(self) -> None:
        want = [[-0.4, -1 / 3], [1 / 6, 0]]
        check_example(surrogate("token", "cispo", max_ratio=1.2), "token", 0.288956, want)

    def test_rec_one_side(self) -> None:
        check_example(whole("reinforce", clip="one_side"), "token", 1 / 3, [[0, -1 / 3], [0, 0]])

    def test_opmd_is_the_k2_regulariser_of_rec_over_1_plus_tau(self) -> None:
        """Trinity-RFT's coefficient .1 on the square absorbs the 1/2, so tau = .2; it does not divide by 1 + tau."""
        want = np.array([[-0.306302, -0.333333], [0.287124, 0]])
        check_example(whole("opmd", tau=0.2, level="token"), "token", None, want / 1.2)

    def test_dual_clip(self) -> None:
        t = table_of([[10.0], [10.0], [2.0]], [-1.0, 1.0, -1.0], [1, 1, 1])
        _, gradient, out = differentiate(surrogate("token", dual=3.0), "token", t)
        np.testing.assert_allclose(out[:, 0], [3.0, -1.2, 2.0])
        np.testing.assert_allclose(gradient, [[0], [0], [2 / 3]], atol=1e-12)

    @pytest.mark.parametrize(
        ("estimator", "value", "slope"), [("k1", -0.5, 1.0), ("k2", 0.125, -0.5), ("k3", 0.148721, -0.648721)]
    )
    def test_kl(self, estimator: str, value: float, slope: float) -> None:
        t = table_of([[np.exp(-0.5)]], [0.0], [1])
        t["logp_ref"] = torch.full((1, 1), -1.0, dtype=torch.float64)
        check_example(kl(coef=1.0, estimator=estimator), "token", value, [[slope]], t)

    def test_defaults_are_the_papers(self) -> None:
        """CISPO's weight is unbounded below, GRPO's KL is k3 with .04."""
        t = table_of([[0.01], [7.0]], [1.0, 1.0], [1, 1])
        check_example(surrogate("token", "cispo"), "token", None, [[-0.005], [-2.5]], t)
        t["logp_ref"] = t["logp_old"]
        by_hand = [0.04 * (1 - 1 / r) / 2 for r in (0.01, 7.0)]
        check_example(kl(), "token", None, [[by_hand[0]], [by_hand[1]]], t)


@pytest.mark.oracle("entropy-bonus")
def test_entropy_bonus() -> None:
    t = inputs.tensors(inputs.table("empty_rows"))
    entropy = inputs.garbage("entropy", t["entropy"], t["mask"]).requires_grad_()
    value = terms.entropy_bonus(entropy, t["mask"], coef=0.2)
    assert torch.equal(value, torch.where(t["mask"], -0.2 * t["entropy"], torch.zeros(())))
    value.sum().backward()
    assert torch.equal(entropy.grad, -0.2 * t["mask"].double())
    assert torch.equal(terms.entropy_bonus(t["entropy"], t["mask"]), -0.01 * t["entropy"] * t["mask"])


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token"])
def test_ratios_are_exactly_one_on_policy_and_in_padding(level: str) -> None:
    t = inputs.tensors(inputs.table("empty_rows"))
    stale = t["logp_old"] + 1.0
    assert (getattr(ratios, level)(t["logp_old"], t["logp_old"], t["mask"]) == 1).all()
    assert (ratios.token(stale, t["logp_old"], t["mask"])[~t["mask"]] == 1).all()


def test_a_ratio_a_rollout_refuses_an_advantage_a_decision() -> None:
    with pytest.raises(ShapeError, match="sequence_token"):
        trust_regions.ppo_clip(torch.ones(2), torch.ones(2, 3))
