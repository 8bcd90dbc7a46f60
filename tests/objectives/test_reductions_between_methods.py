"""What the methods of the literature are to each other, as properties over random updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from torch import Tensor

from coterie.credit import baseline_shift, group_norm
from coterie.objectives import losses, ratios, terms, trust_regions
from coterie.objectives.aggregations import constant, sequence, token

seeds = st.integers(0, 100_000)


def update(seed: int, **changes: Any) -> dict[str, Any]:
    t = inputs.tensors(inputs.table("random", seed))
    t["weights"] = torch.ones_like(t["rewards"])
    t["advantages"] = group_norm(t["rewards"], t["groups"])
    return t | changes


def agg(t: dict[str, Any], name: str) -> Tensor:
    if name == "constant":
        return constant(t["weights"], t["mask"], t["budget"])
    return {"token": token, "sequence": sequence}[name](t["weights"], t["mask"], t["groups"])


def clipped(t: dict[str, Any], level: str = "token", **bounds: float) -> Tensor:
    r = getattr(ratios, level)(t["logp"], t["logp_old"], t["mask"])
    return -trust_regions.ppo_clip(r, t["advantages"], **bounds)


def cispo(t: dict[str, Any], **bounds: float) -> Tensor:
    r = ratios.token(t["logp"], t["logp_old"], t["mask"])
    return -trust_regions.cispo(r, t["advantages"], t["logp"], t["mask"], **bounds)


def unclipped(t: dict[str, Any]) -> Tensor:
    return -trust_regions.unclipped(ratios.token(t["logp"], t["logp_old"], t["mask"]), t["advantages"])


def whole(t: dict[str, Any], name: str, **settings: Any) -> Tensor:
    return getattr(losses, name)(t["logp"], t["logp_old"], t["advantages"], t["mask"], **settings)


def both(value: Any, t: dict[str, Any], aggregation: str, /, **settings: Any) -> tuple[float, np.ndarray]:
    t = t | {"logp": t["logp"].clone().requires_grad_()}
    loss = inputs.scalar(value(t, **settings), agg(t, aggregation))
    loss.backward()
    return float(loss.detach()), t["logp"].grad.numpy()


def same(a: tuple[float, np.ndarray], b: tuple[float, np.ndarray], *, value: bool = True) -> None:
    np.testing.assert_allclose(a[1], b[1], rtol=1e-10, atol=1e-13)
    if value:
        assert a[0] == pytest.approx(b[0], rel=1e-10, abs=1e-12)


@pytest.mark.reduction("dapo", "grpo")
@given(seeds, st.floats(0.01, 0.5))
def test_dapo_with_equal_clips_and_nothing_filtered_is_grpo_as_a_token_mean(seed: int, eps: float) -> None:
    t = update(seed)
    value, _ = both(clipped, t, "token", eps_low=eps, eps_high=eps)
    r, a = torch.exp(t["logp"] - t["logp_old"]), t["advantages"].unsqueeze(-1)
    per_decision = torch.minimum(r * a, r.clip(1 - eps, 1 + eps) * a)[t["mask"]]
    assert value == pytest.approx(-float(per_decision.mean()), abs=1e-12)


@pytest.mark.reduction("dr-grpo", "grpo")
@given(seeds)
def test_equal_lengths_make_token_sequence_and_constant_agree(seed: int) -> None:
    t = update(seed)
    t["mask"] = torch.ones_like(t["mask"])
    t["budget"] = t["mask"].shape[1]
    same(both(clipped, t, "token"), both(clipped, t, "sequence"))
    same(both(clipped, t, "token"), both(clipped, t, "constant"))


@pytest.mark.reduction("gspo", "gspo-token")
@given(seeds, st.sampled_from(["sequence", "sequence_token"]))
def test_gspo_of_one_decision_is_grpo(seed: int, level: str) -> None:
    t = update(seed)
    t["mask"] = torch.zeros_like(t["mask"])
    t["mask"][torch.arange(len(t["mask"])), torch.from_numpy(np.random.default_rng(seed).integers(0, inputs.T, 12))] = (
        True
    )
    same(both(clipped, t, "sequence", level=level), both(clipped, t, "sequence"))


@pytest.mark.reduction("gspo-token")
@given(seeds, st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_gspo_token_is_gspo_when_the_advantage_is_constant_over_the_rollout(seed: int, low: float, high: float) -> None:
    t = update(seed)
    bounds = {"eps_low": low, "eps_high": high}
    same(
        both(clipped, t, "sequence", level="sequence_token", **bounds),
        both(clipped, t, "sequence", level="sequence", **bounds),
    )


@pytest.mark.reduction("rec-oneside")
@given(seeds, st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_rec_one_side_with_the_ratio_has_ppo_clips_gradient(seed: int, low: float, high: float) -> None:
    t, bounds = update(seed), {"eps_low": low, "eps_high": high}
    rec = both(whole, t, "token", name="reinforce", clip="one_side", weight="ratio", **bounds)
    same(rec, both(clipped, t, "token", **bounds), value=False)


@pytest.mark.reduction("rec-gspo-oneside")
@given(seeds, st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_one_side_with_the_rollouts_ratio_has_gspos_gradient(seed: int, low: float, high: float) -> None:
    t, bounds = update(seed), {"eps_low": low, "eps_high": high}
    rec = both(whole, t, "sequence", name="reinforce", clip="one_side", weight="ratio", level="sequence", **bounds)
    same(rec, both(clipped, t, "sequence", level="sequence", **bounds), value=False)


@pytest.mark.reduction("red-weight")
@given(seeds)
def test_weights_by_advantage_when_hot_are_none(seed: int) -> None:
    t = update(seed)
    hot = both(whole, t, "token", name="reinforce", weight="advantage", temperature=1e15)
    same(hot, both(whole, t, "token", name="reinforce"))


@given(seeds)
def test_on_policy_every_first_order_method_is_the_policy_gradient(seed: int) -> None:
    t = update(seed)
    t["logp"] = t["logp_old"]
    plain = both(whole, t, "token", name="reinforce")
    same(both(cispo, t, "token"), plain)
    for other in (both(clipped, t, "token"), both(unclipped, t, "token"), both(clipped, t, "token", dual=3.0)):
        same(other, plain, value=False)
    for clip in ("one_side", "two_side", "ring"):
        same(both(whole, t, "token", name="reinforce", clip=clip, weight="ratio"), plain)
    tau = both(whole, t, "token", name="opmd", level="token", tau=1.5)
    same((tau[0] * 2.5, tau[1] * 2.5), plain)


@pytest.mark.reduction("opmd")
@given(seeds, st.sampled_from(["token", "sequence"]))
def test_opmd_with_tau_0_is_reinforce(seed: int, name: str) -> None:
    t = update(seed)
    same(both(whole, t, name, name="opmd", tau=0.0, level="token"), both(whole, t, name, name="reinforce"))
    summed = both(whole, t, "sequence", name="opmd", tau=0.0)
    reference = constant(t["weights"], t["mask"], 1)
    want = inputs.scalar(whole(t, "reinforce"), reference)
    assert summed[0] == pytest.approx(float(want), rel=1e-10)


@given(seeds)
def test_opmd_levels_agree_on_one_decision(seed: int) -> None:
    t = update(seed)
    t["mask"] = torch.zeros_like(t["mask"])
    t["mask"][:, 2] = True
    same(both(whole, t, "sequence", name="opmd"), both(whole, t, "sequence", name="opmd", level="token"))


@pytest.mark.reduction("cispo")
@given(seeds)
def test_cispo_far_from_its_bounds_has_the_unclipped_gradient(seed: int) -> None:
    t = update(seed)
    same(both(cispo, t, "token", max_ratio=1e6), both(unclipped, t, "token"), value=False)


@pytest.mark.reduction("ppo-clip")
@given(seeds)
def test_wide_bounds_are_no_bounds(seed: int) -> None:
    t = update(seed)
    same(both(clipped, t, "token", eps_low=1.0, eps_high=1e6), both(unclipped, t, "token"))
    none = both(whole, t, "token", name="reinforce", weight="ratio")
    same(none, both(whole, t, "token", name="reinforce", weight="ratio", clip="two_side", eps_low=1.0, eps_high=1e6))


@pytest.mark.reduction("rec-ring")
@given(seeds)
def test_a_ring_beyond_reach_is_two_side(seed: int) -> None:
    t = update(seed)
    ring = both(whole, t, "token", name="reinforce", clip="ring", ring_low=1.0, ring_high=1e6)
    same(ring, both(whole, t, "token", name="reinforce", clip="two_side"))


@pytest.mark.reduction("ppo-clip")
@given(seeds)
def test_dual_clip_out_of_reach_changes_nothing(seed: int) -> None:
    t = update(seed)
    same(both(clipped, t, "token", dual=1e6), both(clipped, t, "token"))


@pytest.mark.reduction("kl")
@given(seeds, st.sampled_from(["k1", "k2", "k3"]), st.booleans())
def test_kl_with_coefficient_0_is_absent(seed: int, estimator: Any, importance: bool) -> None:
    t = update(seed)

    def with_kl(t: dict[str, Any]) -> Tensor:
        extra = terms.kl(t["logp"], t["logp_ref"], t["logp_old"], t["mask"], coef=0.0, estimator=estimator,
                         importance=importance)  # fmt: skip
        return clipped(t) + extra

    same(both(with_kl, t, "token"), both(clipped, t, "token"))


@pytest.mark.reduction("entropy-bonus")
@given(seeds)
def test_an_entropy_bonus_with_coefficient_0_is_absent(seed: int) -> None:
    t = update(seed)

    def with_bonus(t: dict[str, Any]) -> Tensor:
        return clipped(t) + terms.entropy_bonus(t["entropy"], t["mask"], coef=0.0)

    same(both(with_bonus, t, "token"), both(clipped, t, "token"))


@given(seeds)
def test_kl_to_oneself_is_0_and_so_is_its_gradient_for_k2_and_k3(seed: int) -> None:
    t = update(seed)
    t["logp_ref"] = t["logp"]
    for estimator in ("k1", "k2", "k3"):

        def penalty(t: dict[str, Any], estimator: Any = estimator) -> Tensor:
            return terms.kl(t["logp"], t["logp_ref"], t["logp_old"], t["mask"], coef=1.0, estimator=estimator)

        value, gradient = both(penalty, t, "token")
        assert value == 0.0
        assert (gradient == 0).all() == (estimator != "k1")


@given(seeds, st.sampled_from(["token", "sequence"]), st.sampled_from(["std", "none"]))
def test_the_loss_is_0_on_policy_when_advantages_are_centred_by_group(seed: int, level: str, scale: Any) -> None:
    t = update(seed)
    t["mask"][:, 0] = True
    t["logp"], t["advantages"] = t["logp_old"], group_norm(t["rewards"], t["groups"], scale=scale)
    value, gradient = both(clipped, t, "sequence", level=level)
    assert abs(value) < 1e-12
    assert np.abs(gradient).max() > 0


@pytest.mark.reduction("asymre")
@given(seeds, st.floats(0, 0.3))
def test_baseline_shift_is_an_imitation_term(seed: int, delta: float) -> None:
    t = update(seed)
    shifted = both(whole, t | {"advantages": baseline_shift(t["advantages"], delta=delta)}, "token", name="reinforce")
    imitation = lambda t: whole(t, "reinforce") - delta * torch.where(t["mask"], t["logp"], 0)  # noqa: E731
    same(shifted, both(imitation, t, "token"))
