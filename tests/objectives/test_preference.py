"""Preference losses against their oracles, with their gradients, examples, reductions and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.dpo import dpo as dpo_oracle
from oracles.dpo import log_ratio, log_sigmoid, slope
from oracles.gdpo_sr import group_dpo as group_oracle
from oracles.modpo import modpo as modpo_oracle
from oracles.mpo import mpo as mpo_oracle
from oracles.srpo_robust import srpo as srpo_oracle
from torch import Tensor

from coterie.columns import COLUMNS
from coterie.errors import RewardError
from coterie.metrics import Collector, collect
from coterie.objectives.losses import dpo, group_dpo, modpo, mpo, srpo_robust
from coterie.objectives.terms import preference

DPO = [
    {},
    {"beta": 0.7, "smoothing": 0.2},
    {"beta": 2.0, "length": "mean"},
    {"beta": 0.5, "link": "ipo", "length": "mean"},
    {"beta": 0.3, "link": "hinge", "smoothing": 0.1},
    {"beta": 0.1, "spread": 0.5},
]
BETA = 0.3

Oracle = Callable[[dict[str, Any], np.ndarray, np.ndarray], dict[int, float]]
Loss = Callable[[dict[str, Any]], Tensor]


def call(piece: Any, t: dict[str, Any], **settings: Any) -> Tensor:
    return piece.piece.bind(settings)(t)


CASES: dict[str, tuple[Loss, Oracle]] = {
    **{
        f"dpo {s}": (
            lambda t, s=s: call(dpo, t, **s),
            lambda n, logp, live, s=s: dpo_oracle(logp, n["logp_ref"], n["rewards"], n["groups"], live, **s),
        )
        for s in DPO
    },
    "group_dpo": (
        lambda t: call(group_dpo, t, beta=BETA),
        lambda n, logp, live: group_oracle(logp, n["logp_ref"], n["advantages"], n["groups"], live, BETA),
    ),
    "modpo": (
        lambda t: call(modpo, t, preference="exact", beta=BETA),
        lambda n, logp, live: modpo_oracle(
            logp, n["logp_ref"], n["components"], n["reward_weights"], n["groups"], live, "exact", BETA
        ),
    ),
    "mpo": (
        lambda t: call(mpo, t, beta=BETA),
        lambda n, logp, live: mpo_oracle(logp, n["logp_ref"], n["rewards"], n["groups"], live, beta=BETA)[0],
    ),
    "srpo_robust": (
        lambda t: call(srpo_robust, t, beta=BETA, alpha=0.3, revises="format"),
        lambda n, logp, live: srpo_oracle(
            logp, n["logp_ref"], n["rewards"], n["components"]["format"], n["groups"], live, BETA, 0.3
        ),
    ),
}  # fmt: skip
cases = pytest.mark.parametrize("name", CASES)
ALL = ("dpo", "ln-dpo", "modpo", "gepo-oorl", "internvl35-cascade", "gdpo-sr", "apo-accelerated", "codedpo", "veripo",
       "srpo-robust")  # fmt: skip


def made(kind: str, seed: int) -> dict[str, Any]:
    """A table in which some groups have several best and worst rollouts, and some rollouts were shown nothing."""
    n = inputs.table(kind, seed)
    rng = np.random.default_rng([seed, 9])
    if seed % 2:
        n["rewards"] = rng.integers(0, 3, len(n["rewards"])).astype(float)
    n["components"]["exact"] = n["rewards"].copy()
    n["components"]["format"] *= rng.random(len(n["rewards"])) < 0.7
    return n


@pytest.mark.oracle(*ALL)
@cases
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_values_and_gradients_against_the_oracle(name: str, kind: str) -> None:
    loss, oracle = CASES[name]
    for seed in range(2):
        n = made(kind, seed)
        t = inputs.tensors(n)
        live = n["mask"] & (n["weights"] != 0)[:, None]
        want = oracle(n, n["logp"], live)
        t["logp"] = inputs.garbage("logp", t["logp"], t["mask"]).requires_grad_()
        got = loss(t)
        np.testing.assert_allclose(
            got.detach().numpy(), [want[int(g)] for g in n["groups"]], rtol=1e-9, atol=1e-9, err_msg=f"{name} {seed}"
        )
        first = [list(n["groups"]).index(g) for g in want]
        gradient = torch.autograd.grad(got[first].sum(), t["logp"])[0].numpy()
        numeric = slope(lambda logp, n=n, live=live: oracle(n, logp, live), n["logp"])
        np.testing.assert_allclose(gradient, numeric, rtol=2e-5, atol=2e-6, err_msg=f"{name} {seed}")


@pytest.mark.oracle(*ALL)
@pytest.mark.parametrize("name", [n for n in CASES if "hinge" not in n])
def test_gradcheck(name: str) -> None:
    t = inputs.tensors(made("empty_rows", 1))
    logp = t["logp"].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CASES[name][0](t | {"logp": x}), (logp,))


def small(sums: list[float], lengths: list[int] | None = None, **columns: Any) -> dict[str, Any]:
    """One group whose rollouts have these sums of log-ratios, spread over their lengths; the first is the best."""
    lengths = lengths or [1] * len(sums)
    wide = max(lengths)
    mask = torch.tensor([[t < n for t in range(wide)] for n in lengths])
    ref = torch.where(mask, -1.0, 0.0).double()
    gap = torch.tensor([[s / n if t < n else 0.0 for t in range(wide)] for s, n in zip(sums, lengths, strict=True)])
    b = len(sums)
    base = {
        "logp": (ref + gap.double()).requires_grad_(), "logp_ref": ref, "mask": mask, "lengths": mask.sum(-1),
        "rewards": torch.eye(b, dtype=torch.float64)[0], "groups": torch.zeros(b, dtype=torch.long),
        "weights": torch.ones(b, dtype=torch.float64), "step": 0, "components": {}, "reward_weights": {},
    }  # fmt: skip
    return base | {n: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for n, v in columns.items()}


def loss_and_slopes(piece: Any, t: dict[str, Any], **settings: Any) -> tuple[float, list[float]]:
    """The group's loss, and the derivative by each rollout's first decision."""
    value = call(piece, t, **settings)
    (gradient,) = torch.autograd.grad(value[0], t["logp"])
    return float(value[0].detach()), gradient[:, 0].tolist()


@pytest.mark.oracle("ln-dpo")
def test_example_of_length_normalised_dpo() -> None:
    loss, slopes = loss_and_slopes(dpo, small([1, -1], [4, 8]), beta=2.0, length="mean")
    assert loss == pytest.approx(0.386871, abs=1e-6)
    assert np.array(slopes) * [4, 8] == pytest.approx([4 * -0.160411, 8 * 0.080205], abs=2e-5)


@pytest.mark.oracle("modpo")
def test_example_of_multi_objective_dpo() -> None:
    scores = {"mine": torch.tensor([1.0, 0.0]).double(), "other": torch.tensor([1.0, 0.0]).double()}
    t = small([1, -1], components=scores, reward_weights={"mine": 0.5, "other": 0.5})
    loss, slopes = loss_and_slopes(modpo, t, preference="mine", beta=0.1)
    assert loss == pytest.approx(1.037488, abs=1e-6)
    assert slopes == pytest.approx([-0.129131, 0.129131], abs=1e-6)


@pytest.mark.oracle("gepo-oorl")
def test_example_of_equivalent_groups() -> None:
    t = small([0.5, -0.5, -1.0], rewards=[1.0, 1.0, 0.0])
    loss, slopes = loss_and_slopes(dpo, t, beta=0.1, spread=1.0)
    assert loss == pytest.approx(0.894397, abs=1e-6)
    assert slopes == pytest.approx([0.476249, -0.523751, 0.047502], abs=1e-6)
    again, half = loss_and_slopes(preference, t, coef=0.5, beta=0.1, spread=1.0)
    assert again == pytest.approx(loss / 2) and half == pytest.approx([s / 2 for s in slopes])


@pytest.mark.oracle("internvl35-cascade")
def test_example_of_mixed_preference() -> None:
    t = small([1, -1], [4, 1])
    t["logp_ref"] = torch.tensor([[-1.25] * 4, [-5.0] + [0] * 3], dtype=torch.float64)
    t["logp"] = torch.tensor([[-1.0] * 4, [-6.0] + [0] * 3], dtype=torch.float64, requires_grad=True)
    loss, slopes = loss_and_slopes(mpo, t)
    assert loss == pytest.approx(1.736270, abs=1e-6)
    assert slopes == pytest.approx([-0.295514, 0.045514], abs=1e-6)


@pytest.mark.oracle("gdpo-sr")
def test_example_of_group_dpo() -> None:
    """Squared errors in place of log-probs: a rollout's log-ratio is the fall of its error."""
    error, before = np.array([0.010, 0.01, 0.012]), np.array([0.0105, 0.01, 0.0115])
    t = small(list(before - error), advantages=[1.0, 0.0, -1.0])
    assert loss_and_slopes(group_dpo, t, beta=2500.0)[0] == pytest.approx(0.07889, abs=1e-5)


@pytest.mark.oracle("srpo-robust")
def test_example_of_robust_preference() -> None:
    """w, l, and w|l, l|w; what was not recorded counts 0, as if its log-ratio were."""
    t = small([0.5, -0.5, 1, -1], rewards=[1.0, 0.0, 1.0, 0.0])
    t["components"] = {"revises": torch.tensor([0.0, 0.0, -1.0, 1.0]).double()}
    assert loss_and_slopes(srpo_robust, t, beta=0.1, alpha=0.5)[0] == pytest.approx(0.14125)
    still = small([0.0] * 4, rewards=[1.0, 0.0, 1.0, 0.0], components=t["components"])
    assert loss_and_slopes(srpo_robust, still, alpha=0.7)[0] == pytest.approx(0.25)


pairs = st.tuples(st.floats(-20, 20), st.floats(-20, 20))


@pytest.mark.reduction("dpo", "veripo", "apo-accelerated")
@given(pairs, st.floats(0.01, 1))
def test_a_pair_is_dpo_and_the_start_is_log_2(pair: tuple[float, float], beta: float) -> None:
    t = small(list(pair))
    loss, slopes = loss_and_slopes(dpo, t, beta=beta)
    assert loss == pytest.approx(-log_sigmoid(beta * (pair[0] - pair[1])), abs=1e-6)
    assert slopes[0] == pytest.approx(-slopes[1]) and slopes[0] <= 0
    assert loss_and_slopes(dpo, small([0.0, 0.0]), beta=beta)[0] == pytest.approx(math.log(2))
    swapped = small(list(pair), rewards=[0.0, 1.0])
    assert loss_and_slopes(dpo, swapped, beta=beta)[0] == pytest.approx(
        -log_sigmoid(beta * (pair[1] - pair[0])), abs=1e-6
    )


@pytest.mark.reduction("ln-dpo")
@given(pairs, st.integers(1, 6), st.floats(0.01, 1))
def test_with_equal_lengths_the_mean_is_dpo_with_a_smaller_beta(pair: tuple[float, float], n: int, beta: float) -> None:
    t = small(list(pair), [n, n])
    want = loss_and_slopes(dpo, t, beta=beta / n)
    assert loss_and_slopes(dpo, t, beta=beta, length="mean") == (pytest.approx(want[0]), pytest.approx(want[1]))


@pytest.mark.reduction("modpo")
@given(pairs, st.floats(-3, 3), st.floats(0.1, 1))
def test_equal_margins_are_dpo(pair: tuple[float, float], margin: float, own: float) -> None:
    scores = {"preference": torch.tensor([1.0, 0.0]).double(), "other": torch.tensor([margin, margin]).double()}
    t = small(list(pair), components=scores, reward_weights={"preference": own, "other": 1 - own})
    want = loss_and_slopes(dpo, t, beta=0.1 / own)
    assert loss_and_slopes(modpo, t, beta=0.1) == (pytest.approx(want[0], abs=1e-9), pytest.approx(want[1], abs=1e-9))


@pytest.mark.reduction("gepo-oorl")
@given(pairs, st.floats(0, 5))
def test_one_right_and_one_wrong_are_dpo_whatever_the_spread(pair: tuple[float, float], spread: float) -> None:
    want = loss_and_slopes(dpo, small(list(pair)))
    got = loss_and_slopes(preference, small(list(pair)), coef=1.0, spread=spread)
    assert got == (pytest.approx(want[0]), pytest.approx(want[1]))


@pytest.mark.reduction("internvl35-cascade", "codedpo")
@given(pairs)
def test_the_preference_alone_is_dpo(pair: tuple[float, float]) -> None:
    want = loss_and_slopes(dpo, small(list(pair)))
    got = loss_and_slopes(mpo, small(list(pair)), preference=1.0, quality=0.0, generation=0.0)
    assert got == (pytest.approx(want[0]), pytest.approx(want[1]))


@pytest.mark.reduction("gdpo-sr")
@given(pairs, st.floats(0.01, 1))
def test_two_rollouts_of_advantage_1_and_minus_1_are_dpo(pair: tuple[float, float], beta: float) -> None:
    t = small(list(pair), advantages=[1.0, -1.0])
    want = loss_and_slopes(dpo, t, beta=beta)
    assert loss_and_slopes(group_dpo, t, beta=beta) == (pytest.approx(want[0]), pytest.approx(want[1]))


@pytest.mark.reduction("srpo-robust")
@given(pairs, st.floats(0.05, 1))
def test_without_revisions_it_is_ipo(pair: tuple[float, float], beta: float) -> None:
    """(1/2 - beta/2 h)^2 is (beta/2)^2 times IPO's square with the margin 1/beta."""
    t = small(list(pair))
    got = loss_and_slopes(srpo_robust, t, beta=beta, alpha=0.0, revises=None)[0]
    ipo = loss_and_slopes(dpo, t, beta=beta / 2, link="ipo")[0]
    assert got == pytest.approx((beta / 2) ** 2 * ipo)


def test_the_shift_is_the_mean_of_earlier_steps_and_survives_a_stop() -> None:
    piece = mpo.piece.bind({"beta": BETA})
    tables = [made("random", seed) for seed in range(3)]
    seen: list[float] = []
    for step, n in enumerate(tables):
        live = n["mask"] & (n["weights"] != 0)[:, None]
        shift = float(np.mean(seen)) if seen else 0.0
        want, new = mpo_oracle(n["logp"], n["logp_ref"], n["rewards"], n["groups"], live, beta=BETA, shift=shift)
        t = inputs.tensors(n) | {"step": step}
        got = [piece(t), piece(t)]  # in two micro-batches of one step, or two epochs: the same
        for value in got:
            np.testing.assert_allclose(value.numpy(), [want[int(g)] for g in n["groups"]], rtol=1e-9)
        seen += new * 2
        again = mpo.piece.bind({"beta": BETA})
        again.load_state_dict(piece.state_dict())
        piece = again
    assert abs(np.mean(seen)) > 1e-3


@cases
def test_extremes_are_finite(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for fill in (14.0, -14.0):
            n = made("empty_rows", 1)
            t = inputs.tensors(n, dtype)
            t["logp"] = t["logp_ref"] + fill * torch.where(torch.arange(len(t["rewards"])) % 2 == 0, 1, -1).unsqueeze(
                -1
            )
            t["logp"], t["logp_ref"] = (t[c].masked_fill(~t["mask"], -math.inf) for c in ("logp", "logp_ref"))
            t["logp"] = t["logp"].to(dtype).requires_grad_()
            value = CASES[name][0](t)
            (gradient,) = torch.autograd.grad(value.sum(), t["logp"])
            assert value.isfinite().all() and gradient.isfinite().all()
            t["mask"] = torch.zeros_like(t["mask"])
            assert CASES[name][0](t).isfinite().all()


def test_what_they_record() -> None:
    t = small([1.0, -1.0, 3.0], rewards=[1.0, 0.0, 0.5])
    with collect(seen := Collector(), t["mask"]):
        call(dpo, t, beta=0.5)
    assert seen.means() == {
        "preference/margin": pytest.approx(1.0), "preference/accuracy": 1.0, "preference/pairs_share": 1.0,
        "preference/best_reward": pytest.approx(0.5), "preference/worst_reward": pytest.approx(-0.5),
    }  # fmt: skip


def test_modpo_needs_a_weight_for_its_preference() -> None:
    scores = {"preference": torch.tensor([1.0, 0.0]).double()}
    with pytest.raises(RewardError, match="divides by the weight of 'preference', which is 0"):
        call(modpo, small([1, 0], components=scores, reward_weights={"preference": 0.0}))
    with pytest.raises(RewardError, match="reads the reward component 'preference'"):
        call(modpo, small([1, 0], components={"better": scores["preference"]}))


@pytest.mark.oracle("apo-accelerated")
def test_extrapolated_logits_are_the_extrapolated_policy() -> None:
    """pi ~ new (new/old)^alpha, where parameters are logits; as the reference goes on past the policy."""
    from types import SimpleNamespace

    from coterie.policies.reference import Reference

    logits = {"w": torch.log(torch.tensor([0.5, 0.5]).double())}
    policy: Any = SimpleNamespace(state_dict=lambda: logits, has_adapters=False)
    reference = Reference(policy, "periodic", every=2, momentum=0.3)
    logits = {"w": torch.log(torch.tensor([0.7, 0.3]).double())}
    reference.after_step(1)
    assert torch.equal(reference.state_dict()["weights"]["w"].exp(), torch.tensor([0.5, 0.5]).double())
    reference.after_step(2)
    got = torch.log_softmax(reference.state_dict()["weights"]["w"], 0)
    assert got.tolist() == pytest.approx([-0.286964, -1.388451], abs=1e-6)
    plain = Reference(policy, "periodic", every=1)
    plain.after_step(1)
    assert torch.equal(plain.state_dict()["weights"]["w"], logits["w"]) and plain.state_dict()["before"] is None


def test_the_oracle_reads_the_columns_of_the_vocabulary() -> None:
    assert {"logp_ref", "reward_weights"} <= set(COLUMNS)
    assert log_ratio(np.array([1.0, 5.0]), np.array([0.0, 0.0]), np.array([True, False]), "mean") == 1.0
