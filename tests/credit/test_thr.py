from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.thr import influences, thr

from coterie.credit import hidden_reward
from coterie.policies.groupwise import head_influence
from coterie.reductions import group_sum


@pytest.mark.oracle("thr")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("settings", [{}, {"p": -0.3, "beta": 0.0}, {"beta": 0.5, "small": "keep"}])
def test_against_the_oracle(kind: str, settings: dict[str, Any]) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        n["influence"] = n["influence"] + 0.6
        t = inputs.tensors(n)
        for a in (t["rewards"], t["logp"]):
            got = hidden_reward(a, t["influence"], t["correct"], t["groups"], t["mask"], **settings)
            want = thr(a.numpy(), n["influence"], n["correct"], n["groups"], n["mask"], **settings)
            np.testing.assert_allclose(got.numpy(), np.array(want).reshape(got.shape), rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("thr")
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_influence_against_every_pair_of_tokens(kind: str, chunk: int) -> None:
    n, draw = inputs.table(kind), np.random.default_rng(0)
    mask, weight = n["mask"], draw.standard_normal((5, 3))
    hidden = draw.standard_normal((*mask.shape, 3))
    logits = hidden @ weight.T
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    t = inputs.tensors(n)
    right = t["correct"].double()
    share = right / group_sum(right, t["groups"]).clamp_min(1)
    wide = [x.unsqueeze(-1).expand(mask.shape)[t["mask"]] for x in (t["groups"], share)]
    head, states = torch.from_numpy(weight), torch.from_numpy(hidden)[t["mask"]]
    got = head_influence(states, lambda h: h @ head.T, t["tokens"][t["mask"]], *wide, chunk)
    want = np.array(influences(probs, hidden, n["tokens"], n["groups"], n["correct"], mask)).reshape(mask.shape)
    np.testing.assert_allclose(got.numpy(), want[mask], rtol=1e-9, atol=1e-10)


@pytest.mark.oracle("thr")
def test_influence_is_how_much_a_step_on_the_head_raises_the_correct_rollouts() -> None:
    """The definition itself: the derivative of the mean log-prob of correct rollouts along a token's gradient."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    hidden = torch.randn(5, 4, dtype=torch.float64, generator=draw)
    tokens, share = torch.tensor([0, 3, 3, 5, 1]), torch.tensor([0.5, 0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    logp = (hidden @ weight.T).log_softmax(-1).gather(1, tokens.unsqueeze(-1)).squeeze(-1)
    (towards,) = torch.autograd.grad((share * logp).sum(), weight, retain_graph=True)
    want = [float((torch.autograd.grad(x, weight, retain_graph=True)[0] * towards).sum()) for x in logp]
    with torch.no_grad():
        got = head_influence(hidden, lambda h: h @ weight.T, tokens, torch.zeros(5, dtype=torch.long), share, 2)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)


@pytest.mark.oracle("thr")
def test_numbers_of_the_source() -> None:
    advantages = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    influence = torch.tensor([[0.09], [-0.21], [0.09], [0.21]], dtype=torch.float64)
    correct, mask = advantages > 0, torch.ones(4, 1, dtype=torch.bool)
    got = hidden_reward(advantages, influence, correct, torch.zeros(4, dtype=torch.long), mask, p=0.1, beta=0.0)
    np.testing.assert_allclose(got.squeeze(-1).numpy(), [1.1, -1.1, 1.1, -0.9])


rows = st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 2), st.booleans(), st.floats(-3, 3)), min_size=1, max_size=9)


@pytest.mark.reduction("thr")
@given(rows, st.floats(0, 2))
def test_without_p_and_with_small_ones_kept_it_changes_nothing(
    drawn: list[tuple[float, int, bool, float]], beta: float
) -> None:
    a = torch.tensor([row[0] for row in drawn], dtype=torch.float64)
    groups, correct = (torch.tensor([row[k] for row in drawn]) for k in (1, 2))
    influence = torch.tensor([[row[3], 0.5] for row in drawn], dtype=torch.float64)
    mask = torch.ones_like(influence, dtype=torch.bool)
    got = hidden_reward(a, influence, correct, groups, mask, p=0.0, beta=beta, small="keep")
    assert torch.equal(got, a.unsqueeze(-1).expand(-1, 2))
    none = hidden_reward(a, influence, torch.zeros_like(correct), groups, mask, beta=beta)
    assert torch.equal(none, a.unsqueeze(-1).expand(-1, 2))
