"""ScaleRL: the advantage over the spread of the batch, CISPO by prompt, and the parts of the loop it brings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs, scalerl

from coterie import credit
from coterie.build import build
from coterie.curriculum import unsolved
from coterie.errors import RecipeError
from coterie.objectives import aggregations, ratios, trust_regions
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.recipe import resolve
from coterie.rollout.strategies import interrupted
from coterie.rollouts import Prompt, Sampling

RECIPE = resolve(method="scalerl", overrides=["task=sort"])


def advantages(t: dict[str, Any]) -> torch.Tensor:
    return RECIPE.single["credit.baseline"](t)


def loss(t: dict[str, Any]) -> torch.Tensor:
    t = t | {"weights": torch.ones_like(t["rewards"])}
    value = -RECIPE.single["objective.trust_region"](t | {"ratio": RECIPE.single["objective.ratio"](t)})
    return inputs.scalar(value, RECIPE.single["objective.aggregation"](t))


@pytest.mark.oracle("scalerl")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_advantages_and_loss_are_the_oracles(kind: str) -> None:
    for seed in range(2):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        np.testing.assert_allclose(advantages(t), scalerl.advantages(n["rewards"], n["groups"]), rtol=1e-9, atol=1e-12)
        columns = (n[k] for k in ("logp", "logp_old", "advantages", "groups", "mask"))
        value, slope = scalerl.loss(*columns)
        logp = t["logp"].clone().requires_grad_()
        got = loss(t | {"logp": logp})
        got.backward()
        assert float(got.detach()) == pytest.approx(value, rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(logp.grad, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("scalerl")
def test_the_example() -> None:
    """Ratios 1.5 and .5, rewards 1 and -1: advantages 1 and -1, loss -.019240, gradient [-.75, .25]."""
    a = credit.group_norm(
        torch.tensor([1.0, -1.0]).double(), torch.tensor([0, 0]), scale="centred_std", ddof=0, eps=0.0
    )
    assert a.tolist() == [1.0, -1.0]
    old = torch.full((2, 1), math.log(0.4), dtype=torch.float64)
    logp = torch.tensor([[math.log(0.6)], [math.log(0.2)]], dtype=torch.float64, requires_grad=True)
    mask, groups = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 0])
    value = -trust_regions.cispo(ratios.token(logp, old, mask), a, logp, mask)
    total = inputs.scalar(value, aggregations.token(torch.ones(2).double(), mask, groups, scope="group"))
    total.backward()
    np.testing.assert_allclose(logp.grad[:, 0], [-0.75, 0.25])
    assert float(total.detach()) == pytest.approx(-0.019240, abs=1e-6)


@pytest.mark.reduction("scalerl")
@given(seed=st.integers(0, 10_000))
def test_one_prompt_on_policy_is_grpos_token_mean_with_the_batchs_spread(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    t |= {"groups": torch.zeros_like(t["groups"]), "logp": t["logp_old"], "weights": torch.ones_like(t["rewards"])}
    t["advantages"] = advantages(t)
    same = credit.group_norm(t["rewards"], t["groups"], scale="batch_std", ddof=0, eps=1e-6)
    torch.testing.assert_close(t["advantages"], same)
    logp = t["logp"].clone().requires_grad_()
    loss(t | {"logp": logp}).backward()
    other = t["logp"].clone().requires_grad_()
    surrogate = trust_regions.ppo_clip(ratios.token(other, t["logp_old"], t["mask"]), same)
    inputs.scalar(-surrogate, aggregations.token(t["weights"], t["mask"], t["groups"])).backward()
    torch.testing.assert_close(logp.grad, other.grad)


def test_groups_without_a_signal_leave_the_batch_and_are_not_replaced() -> None:
    (piece,) = RECIPE.chain["selection.filters"]
    t = {"rewards": torch.tensor([1.0, 0.0, 1.0, 1.0]), "groups": torch.tensor([0, 0, 1, 1])}
    assert piece(t).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert piece.at(0)["max_rounds"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_head_in_float32(dtype: str) -> None:
    """Logits are float32 products of the model's own states and weights; the sampler has the same ones."""
    spec = {"init": TinySpec(width=32, layers=1, vocabulary="abcdefgh"), "dtype": dtype}
    wide = CausalLM.load(ModelSpec(float32_head=True, **spec))
    assert wide._split.exact
    prompts = [Prompt((1, 3, 5)), Prompt((1, 4))]
    made = wide.rollout(prompts, [[1, 2, 3], [4, 5, 6]], Sampling(max_tokens=8))
    score = wide.score(made, {"logp"})["logp"]
    ids = torch.tensor([[1, 3, 5, *made["tokens"][0].tolist()]])
    with torch.no_grad():
        hidden = wide._split.body(ids).float()
    weight = wide.model.get_output_embeddings().weight
    assert weight.dtype == getattr(torch, dtype)
    logits = (hidden @ weight.detach().float().T)[0, 2:-1]
    logits[:, list(wide.engine.forbid)] = -torch.inf
    want = logits.log_softmax(-1).gather(-1, made["tokens"][0].unsqueeze(-1)).squeeze(-1)
    live = made["mask"][0]
    torch.testing.assert_close(score[0][live].detach(), want[live], rtol=0, atol=2e-2 if dtype == "bfloat16" else 1e-5)
    score.sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()
    plain = CausalLM.load(ModelSpec(**spec))
    if dtype == "float32":
        torch.testing.assert_close(plain.score(made)["logp"], score)


def test_a_solved_prompt_is_not_drawn_again_and_memory_survives() -> None:
    piece = unsolved(above=0.9)
    assert sorted(piece(4, 4, seed=0)) == [0, 1, 2, 3]
    index = torch.tensor([0] * 10 + [1] * 10 + [2])
    correct = torch.tensor([True] * 9 + [False] + [True] * 8 + [False] * 2 + [True])
    piece.observe(index, correct.float(), correct)
    again = unsolved(above=0.9)
    again.load_state_dict(piece.state_dict())
    drawn = piece(4, 6, seed=0)
    assert set(drawn) == {1, 3} and again(4, 6, seed=0) == drawn
    piece.observe(torch.arange(4).repeat(50), torch.ones(200), None)
    assert set(piece(4, 4, seed=0)) == {0, 1, 2, 3}, "when all are solved, all come again"


@given(size=st.integers(1, 9), count=st.integers(1, 20))
def test_without_outcomes_every_prompt_comes_once_an_epoch(size: int, count: int) -> None:
    drawn = unsolved()(size, count, seed=3)
    assert len(drawn) == count
    for start in range(0, count - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))


def tiny(*overrides: str) -> Any:
    model = "model={init: {layers: 1, width: 16, heads: 2, context: 32}}"
    task = "task={sort: {digits: 2, train: 8, held_out: 2}}"
    return build(resolve(overrides=[model, task, "threads=1", "rollout.max_tokens=10", *overrides]))


def test_a_long_thought_is_interrupted() -> None:
    """Rows cut at 5 of 10 tokens go on behind the cue, which is context; one that has ended or said the end is not."""
    run = tiny()
    prompts = [run.prompt(0), run.prompt(1)]
    seeds = [[1, 2, 3, 4], [5, 6, 7, 8]]
    inputs_ = {"policy": run.policy, "prompts": prompts, "seeds": seeds, "sampling": Sampling(max_tokens=10)}
    cue = run.policy.encode_completion("0>")
    made = interrupted(**inputs_, entropy=True, budget=0.5, cue="0>", end="")
    half = run.policy.rollout(prompts, seeds, Sampling(max_tokens=5))
    told = half["truncated"]
    assert told.any()
    for i in range(len(made)):
        tokens, mask = made["tokens"][i].tolist(), made["mask"][i].tolist()
        n = int(half["lengths"][i])
        assert tokens[:n] == half["tokens"][i][:n].tolist()
        if told[i]:
            assert tuple(tokens[5:7]) == cue and mask[:5] == [True] * 5 and mask[5:7] == [False] * 2 and mask[7]
        else:
            assert made["lengths"][i] == n
    again = run.policy.score(made)["logp"].detach()
    torch.testing.assert_close(again, made["logp_old"], rtol=0, atol=1e-4)
    assert (made["lengths"] + 2 * told <= 10).all()
    free = interrupted(**inputs_, entropy=False, budget=0.5, cue="0>", end="0")
    said = ["0" in text for text in half.texts]
    assert any(said) and any(told[i] and said[i] for i in range(8))
    for i in range(8):
        whole = free["mask"][i][: int(free["lengths"][i])].all()
        assert bool(whole) == (not bool(told[i]) or said[i])


def test_a_cue_that_leaves_no_room_is_refused() -> None:
    run = tiny()
    arguments = {"policy": run.policy, "prompts": [run.prompt(0)], "seeds": [[1]], "sampling": Sampling(max_tokens=6)}
    for settings in ({"budget": 0.9, "cue": "000"}, {"budget": 0.0, "cue": ""}, {"budget": 1.0, "cue": ""}):
        with pytest.raises(RecipeError, match="leaves nothing"):
            interrupted(**arguments, entropy=False, **settings)
