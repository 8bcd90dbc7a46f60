"""Likelihood estimates on an enumerable model: unbiased for the enumerated bound, and less noisy when coupled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import masked_diffusion as oracle

from coterie.policies.masked_diffusion import likelihood
from coterie.policies.masked_diffusion.likelihood import Inputs

PLACES, TOKENS, DRAWS = 4, 2, 20_000
MODEL = oracle.joint_model(PLACES, TOKENS, seed=3)
ANSWER = (0, 1, 1, 0)


def estimates(places: int, masks: int, coupled: bool, seed: int = 0) -> np.ndarray:
    """One estimate a row, by the log-probs of the enumerable model. The first `places` places are decided."""
    decided = torch.zeros(DRAWS, PLACES, dtype=torch.bool)
    decided[:, :places] = True
    inputs = likelihood.elbo(decided, torch.arange(DRAWS) + 10**6 * seed, masks, coupled)
    return evaluate(inputs).sum(-1)


def evaluate(inputs: Inputs) -> np.ndarray:
    """The estimate of each decision. [DRAWS,C]"""
    known: dict[tuple[int, ...], np.ndarray] = {}
    out = np.zeros((DRAWS, PLACES))
    for row, hidden, weight in zip(*(x.numpy() for x in inputs), strict=True):
        masked = tuple(np.nonzero(hidden)[0].tolist())
        if masked not in known:
            found = [oracle.log_prob(MODEL, ANSWER, masked, i) if i in masked else 0.0 for i in range(PLACES)]
            known[masked] = np.array(found)
        assert not (weight[~hidden] != 0).any()
        out[row] += known[masked] * weight
    return out


def bound(places: int) -> float:
    """The enumerated bound of the first places, the others always hidden."""
    always = tuple(range(places, PLACES))
    marginal = {c: MODEL[c + (None,) * len(always)][:places] for c in MODEL_OF[places]}
    return oracle.bound(marginal, ANSWER[:places])


MODEL_OF = {n: [c[:n] for c in MODEL if all(x is None for x in c[n:])] for n in range(1, PLACES + 1)}


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("masks", [1, 2, 3])
@pytest.mark.parametrize("places", [1, 2, 3, 4])
def test_the_estimate_is_unbiased_for_the_bound(places: int, masks: int, coupled: bool) -> None:
    made = estimates(places, masks, coupled)
    error = made.std() / np.sqrt(DRAWS)
    assert abs(made.mean() - bound(places)) < 4 * error + 1e-9


def test_one_place_has_no_noise() -> None:
    for coupled in (False, True):
        made = estimates(1, 2, coupled)
        np.testing.assert_allclose(made, oracle.log_prob(MODEL, ANSWER, range(PLACES), 0), atol=1e-12)


def test_coupling_lowers_the_variance_at_equal_cost() -> None:
    """One pair and the whole are three inputs; so are three draws."""
    coupled, free = estimates(3, 1, True).var(), estimates(3, 3, False).var()
    assert coupled < 0.9 * free
    decided, noise = torch.ones(DRAWS, PLACES, dtype=torch.bool), torch.arange(DRAWS)
    each = [evaluate(likelihood.elbo(decided, noise, *how)).var(0) for how in ((1, True), (3, False))]
    assert (each[0] < 0.9 * each[1]).all()  # of every decision: none is ever left out


def test_each_pair_reads_each_place_once() -> None:
    decided = torch.tensor([[True, True, False, True]] * 50)
    inputs = likelihood.elbo(decided, torch.arange(50), 3, True)
    asked = torch.zeros(50, 4).index_add(0, inputs.row, (inputs.weight != 0).float())
    assert (asked == torch.tensor([4.0, 4.0, 0.0, 4.0])).all()  # the whole, and three pairs
    assert inputs.hidden[:, 2].all()  # what is not decided is hidden throughout


def test_the_weights_are_those_of_plain_loops() -> None:
    """The catalogue's example, and every drawn set of the estimate under log-probs that do not see the mask."""
    assert oracle.estimate([-1, -2, -3], [[0], [1, 2]]) == pytest.approx(-5.25)
    logp = torch.tensor([-1.0, -2.0, -3.0, -0.5], dtype=torch.float64)
    decided = torch.ones(20, PLACES, dtype=torch.bool)
    free = likelihood.elbo(decided, torch.arange(20), 3, False)
    for row in range(20):
        mine = free.row == row
        sets = [np.nonzero(h.numpy())[0].tolist() for h in free.hidden[mine]]
        assert float((free.weight[mine] @ logp).sum()) == pytest.approx(oracle.estimate(logp.tolist(), sets))
    pairs = likelihood.elbo(decided, torch.arange(20), 2, True)
    model = {c: np.stack([np.array([0.0, 1.0])] * PLACES) for c in MODEL}
    for row in range(20):
        mine = pairs.row == row
        sets = [np.nonzero(h.numpy())[0].tolist() for h in pairs.hidden[mine][1:3]]
        each = [oracle.log_prob(model, ANSWER, range(PLACES), i) for i in range(PLACES)]
        got = float((pairs.weight[mine] @ torch.tensor(each, dtype=torch.float64)).sum())
        assert got == pytest.approx(oracle.coupled_estimate(model, ANSWER, sets))


def test_trajectory_asks_every_decision_once_on_the_canvas_before_it() -> None:
    canvas = torch.tensor([[5, 6, 7, 9], [5, 6, 9, 9]])  # 9 masks
    unmasked = torch.tensor([[1, 0, 1, -1], [-1, 0, -1, -1]])  # in the second row place 0 was given
    decided = torch.tensor([[True, True, False, False], [False, True, False, False]])
    inputs = likelihood.trajectory(decided, canvas, unmasked, 9)
    assert inputs.row.tolist() == [0, 0, 1]
    assert inputs.hidden.tolist() == [
        [True, True, True, True], [True, False, True, True], [False, True, True, True],
    ]  # fmt: skip
    assert inputs.weight.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]


def test_prompts_lose_their_share_of_tokens_by_seed() -> None:
    tokens = torch.ones(4000, 10, dtype=torch.int64)
    noise = torch.arange(4000)
    hidden = likelihood.hide_prompt(tokens, noise, 0.15, 99)
    assert float((hidden == 99).double().mean()) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(hidden, likelihood.hide_prompt(tokens, noise, 0.15, 99))
    assert not torch.equal(hidden, likelihood.hide_prompt(tokens, likelihood.fresh(noise, 1), 0.15, 99))
    assert likelihood.hide_prompt(tokens, noise, 0.0, 99) is tokens
    assert torch.equal(likelihood.fresh(noise, 0), noise)
