"""Decisions that spell a pattern, for AdaCoT and CAD-RL, and AdaCoT's reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.matched import inside, precision_loss, trigger

from coterie.api import start
from coterie.errors import RecipeError, RewardError
from coterie.metrics import Collector, collect
from coterie.objectives import ratios, trust_regions
from coterie.objectives.aggregations import sequence
from coterie.recipe import resolve
from coterie.rewards.matches import matches
from coterie.rewards.shaping import gate, trigger_penalty
from coterie.selection import weigh_matched
from tests.e2e.conftest import TINY

THINK = r"(?<=<think>)[\s\S]"


@pytest.mark.oracle("adacot", "cad-rl")
@given(
    st.lists(st.text("1.a <>/thinkTHINK", max_size=5), max_size=8), st.sampled_from([r"\d[\d.]*", "a*", THINK, "in"])
)
def test_tokens_in_a_match_against_the_oracle(texts: list[str], pattern: str) -> None:
    assert matches(texts, pattern) == inside(texts, pattern)


def test_the_decision_after_the_tag_and_every_digit() -> None:
    assert matches(["<think>", "</think>", "4"], THINK) == [False, True, False]
    assert matches(["<th", "ink>", "So", " 12"], THINK) == [False, False, True, False]
    assert matches(["<th", "ink>So", " 12"], THINK) == [False, True, False]
    assert matches(["x", "=1", ".", "5;"], r"\d[\d.]*") == [False, True, True, True]
    assert matches([], "x") == [] and matches(["", "x"], "") == [False, False]
    with pytest.raises(RecipeError, match="no regular expression"):
        matches(["x"], "(")


def value_of(t: dict[str, Any]) -> torch.Tensor:
    r = ratios.token(t["logp"], t["logp_old"], t["mask"])
    return -trust_regions.ppo_clip(r, t["advantages"], eps_low=0.4, eps_high=0.8)


@pytest.mark.oracle("cad-rl")
@pytest.mark.parametrize("omega", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_precision_loss_against_the_oracle(kind: str, omega: float) -> None:
    n = inputs.table(kind, 1)
    t = inputs.tensors(n)
    weights = weigh_matched(t["matched"], t["mask"], t["weights"], pattern="x", factor=omega)
    value = value_of(t)
    loss = float(inputs.scalar(value, sequence(weights, t["mask"], t["groups"])))
    assert loss == pytest.approx(precision_loss(value.tolist(), n["matched"], n["mask"], n["weights"], omega), rel=1e-9)


@pytest.mark.oracle("cad-rl")
def test_numbers_of_cad_rl() -> None:
    old, mask = torch.full((1, 2), -1.0, dtype=torch.float64), torch.ones(1, 2) > 0
    logp = (old + torch.tensor([[2.0, 1.0]]).double().log()).requires_grad_()
    t = {"logp": logp, "logp_old": old, "mask": mask, "advantages": torch.ones(1).double()}
    with collect(seen := Collector()):
        weights = weigh_matched(torch.tensor([[True, False]]), mask, torch.ones(1).double(), pattern="x")
    loss = inputs.scalar(value_of(t), sequence(weights, mask, torch.zeros(1).long()))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-1.533333, abs=1e-6)
    np.testing.assert_allclose(logp.grad, [[0.0, -1 / 3]], atol=1e-9)
    assert seen.means() == {"weights/matched_share": 0.5}


@pytest.mark.oracle("cad-rl")
def test_the_reward_of_cad_rl() -> None:
    parts = {"executes": [1.0, 0.0], "overlap": [0.8, 0.8], "judged": [0.6, 0.6]}
    components = {k: torch.tensor(v, dtype=torch.float64) for k, v in parts.items()}
    weights = {"executes": 0.0, "overlap": 1.0, "judged": 1.0}
    rewards = components["overlap"] + components["judged"]
    got = gate(rewards, components, weights, gated=("overlap", "judged"), by="executes")
    assert got.tolist() == pytest.approx([1.4, 0.0])


@pytest.mark.oracle("adacot")
def test_a_factor_of_nothing_is_no_gradient() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]) > 0
    matched = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0]]) > 0
    ones = torch.ones(3, dtype=torch.float64)
    dropped = weigh_matched(matched, mask, ones, pattern="x", factor=0.0, keep_sum=False)
    assert dropped.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert weigh_matched(matched, mask, ones, pattern="x", factor=0.0).tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.oracle("adacot")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_penalties_against_the_oracle(kind: str) -> None:
    n = inputs.table(kind, 2)
    draw = np.random.default_rng(0)
    used, needed = (draw.choice([0.0, 1.0, np.nan], len(n["rewards"])) for _ in range(2))
    components = {"used": torch.from_numpy(used), "needed": torch.from_numpy(needed)}
    got = trigger_penalty(torch.from_numpy(n["rewards"]), components, miss=0.4, over=0.2)
    want = [trigger(r, u, w, 0.4, 0.2) for r, u, w in zip(n["rewards"], used, needed, strict=True)]
    np.testing.assert_allclose(got, want)


@pytest.mark.oracle("adacot")
def test_numbers_of_adacot() -> None:
    def column(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    components = {"used": column(1, 0, 0), "needed": column(0, 0, 1), "form": column(1, 0, torch.nan)}
    with collect(seen := Collector()):
        got = trigger_penalty(column(1, 1, 0), components)
    assert got.tolist() == pytest.approx([0.9, 1.0, -0.3])
    third = pytest.approx(1 / 3)
    assert seen.means() == {"trigger/used_share": third, "trigger/missed_share": third, "trigger/over_share": third}
    got = trigger_penalty(column(1, 1, 0), components, well_formed="form", malformed=2.0)
    assert got.tolist() == pytest.approx([0.9, -1.0, -0.3])
    with pytest.raises(RewardError, match="reads the reward component 'thinks'"):
        trigger_penalty(column(1, 1, 0), components, used="thinks")


@pytest.mark.reduction("adacot", "cad-rl")
@given(st.integers(0, 10_000))
def test_without_prices_and_weights_nothing_changes(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    components = {"used": t["rewards"], "needed": -t["rewards"]}
    assert torch.equal(trigger_penalty(t["rewards"], components, miss=0.0, over=0.0), t["rewards"])
    same = weigh_matched(t["matched"], t["mask"], t["weights"], pattern="x", factor=1.0)
    torch.testing.assert_close(same, torch.where(t["mask"], t["weights"].unsqueeze(-1), 0.0))
    assert (
        not weigh_matched(torch.zeros_like(t["mask"]), t["mask"], t["weights"], pattern="x")
        .sub(same)
        .abs()
        .gt(1e-12)
        .any()
    )


def test_through_the_loop_the_pattern_finds_its_decisions(tmp_path: Path) -> None:
    """Of decisions all but the ends spell digits or the sign of the task."""
    piece = "selection.weights=[{weigh_matched: {pattern: '[0-9]', factor: 3.0}}]"
    overrides = [*TINY, "task.dense=true", piece]
    last = start(resolve(method="grpo", overrides=overrides), tmp_path / "run", quiet=True).last
    assert 0.3 < last["weights/matched_share"] < 1
    nothing = piece.replace("[0-9]", "no such text")
    last = start(resolve(method="grpo", overrides=[*overrides, nothing]), tmp_path / "other", quiet=True).last
    assert last["weights/matched_share"] == 0
