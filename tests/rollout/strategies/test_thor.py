"""THOR: failed calls are taken back, made anew and rewarded for running; without them it is GRPO."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles import thor as oracle

from coterie.api import start
from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect as collected
from coterie.credit import group_norm
from coterie.environments.base import Step, World
from coterie.environments.calculator import Calculator
from coterie.errors import RecipeError
from coterie.loop import credit, select
from coterie.metrics import Collector, collect
from coterie.objectives.aggregations import token as mean_over_tokens
from coterie.objectives.ratios import token
from coterie.objectives.terms import positive_nll
from coterie.objectives.trust_regions import ppo_clip
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.recipe import resolve
from coterie.rewards.shaping import call_success
from coterie.rollout.strategies.plain import plain
from coterie.rollout.strategies.retried_calls import retried_calls
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.selection import weigh_retries
from coterie.streams import stream

TURNS, TOKENS = 4, 5


class Tool:
    """What follows "?" is a call, and runs where it begins with "1"; the answer tells how often this was asked."""

    def reset(self, row: Any) -> None:
        self.asked = 0

    def step(self, action: str) -> Step:
        self.asked += 1
        _, call, said = action.partition("?")
        info = {"ran": said.startswith("1")} if call else {}
        return Step(f"{self.asked}>", float(info.get("ran", False)) / 4, "!" in action, info)


class Broken(Tool):
    """No call runs."""

    def step(self, action: str) -> Step:
        step = super().step(action)
        return replace(step, info={name: False for name in step.info})


class Fickle(Tool):
    """Answers otherwise each time that it is played."""

    played = 0

    def reset(self, row: Any) -> None:
        type(self).played += 1
        super().reset(row)

    def step(self, action: str) -> Step:
        return replace(super().step(action), observation=f"{self.played}>")


@pytest.fixture(scope="module")
def policy() -> CausalLM:
    init = {"layers": 1, "width": 16, "heads": 2, "vocabulary": "0123456789>?!a", "context": 64}
    return CausalLM.load(ModelSpec(init=init, seed=3))


def world(make: Any = Tool, turns: int = TURNS) -> World:
    return World(make, turns=turns, turn_tokens=TOKENS)


def asked(policy: CausalLM) -> tuple[list[Prompt], list[list[int]], Sampling]:
    prompts = [Prompt(policy.encode(text), {"prompt": text}, i) for i, text in enumerate(["12>", "3>", "a>"])]
    seeds = [[stream(0, "rollout", p, k) for k in range(8)] for p in range(len(prompts))]
    return prompts, seeds, Sampling(max_tokens=48)


def rolled(policy: CausalLM, *, make: Any = Tool, entropy: bool = False, **settings: Any) -> Rollouts:
    settings = {"calls": -1, "retries": 6, "back": 1, "begins": "?", **settings}
    return retried_calls(policy, *asked(policy), entropy, world(make), **settings)


def of_pieces(t: dict[str, Any], weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and loss as the page composes them."""
    advantages = group_norm(call_success(t["rewards"], t["ran"]), t["groups"])
    weights = weigh_retries(t["ran"], torch.ones_like(advantages), weight=weight)
    share = mean_over_tokens(weights, t["mask"], t["groups"])
    mask = share != 0
    value = -ppo_clip(token(t["logp"], t["logp_old"], mask), advantages)
    value = value + positive_nll(t["logp"], advantages, mask, coef=0.01, on="advantages")
    return advantages, (torch.where(mask, value, 0.0) * share).sum()


@pytest.mark.oracle("thor")
@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_advantages_loss_and_gradient_against_the_oracle(kind: str, weight: float) -> None:
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        t["logp"].requires_grad_()
        advantages, value = of_pieces(t, weight)
        np.testing.assert_allclose(advantages, oracle.advantages(n["rewards"], n["ran"], n["groups"])[1], atol=1e-9)
        want, slope = oracle.loss(n, weight=weight)
        np.testing.assert_allclose(value.item(), want, rtol=1e-9, atol=1e-9)
        (got,) = torch.autograd.grad(value, t["logp"])
        np.testing.assert_allclose(got, slope, rtol=1e-9, atol=1e-9)


@pytest.mark.oracle("thor")
def test_numbers_of_the_source() -> None:
    """The released code's mean is over the good decisions, here it is over all: half of these are good."""
    logp, a = [[-1.0, -2.0], [-3.0, -4.0]], [[0.7, 0.7], [-0.7, -0.7]]
    assert oracle.likelihood(logp, a) == pytest.approx(0.015)
    mask = torch.ones(2, 2, dtype=torch.bool)
    term = positive_nll(torch.tensor(logp), torch.tensor([0.7, -0.7]), mask, coef=0.01, on="advantages")
    assert term.mean().item() / 0.5 == pytest.approx(0.015)
    assert oracle.likelihood(logp, [[0.0, 0.0], [-1.0, -1.0]]) == 0.0  # nobody is good
    t = {"rewards": [1, 0, 9, 9, 9], "ran": [-1, -1, 1, 0, 0], "groups": [0, 0, 1, 1, 1]}
    earned, got = oracle.advantages(**t, eps=0.0)
    assert earned == [1, 0, 1, 0, 0]
    assert got == pytest.approx([0.5**0.5, -(0.5**0.5), 2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5])


@pytest.mark.reduction("thor")
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0, 3))
def test_without_retries_the_pieces_change_nothing(rewards: list[float], weight: float) -> None:
    r = torch.tensor(rewards, dtype=torch.float64)
    none = torch.full((len(r),), -1)
    assert torch.equal(call_success(r, none), r)
    assert torch.equal(weigh_retries(none, r, weight=weight), r)


@pytest.mark.reduction("thor")
def test_without_failed_calls_it_is_grpo_bit_for_bit(tmp_path: Path) -> None:
    """In a world without tools: the very weights of GRPO after two steps, the term left out."""
    walk = Path(__file__).parents[2] / "e2e/walk.py"
    small = [
        f"task={walk}:walk", "model={init: {layers: 1, width: 16, heads: 2, context: 32}}", "threads=1", "steps=2",
        "draw.prompts=4", "rollout.group_size=4", "rollout.max_tokens=24", "evaluation.prompts=2", "checkpoint.every=2",
        "objective.trust_region={ppo_clip: {eps_low: 0.2, eps_high: 0.2}}", "objective.aggregation=token",
        "objective.terms=[]", "log.rollouts_every=0",
    ]  # fmt: skip
    found = []
    for slug in ("grpo", "thor"):
        run = start(resolve(method=slug, overrides=small), tmp_path / slug, quiet=True).path
        found.append((run / "checkpoints/step-000002/policy/model.safetensors").read_bytes())
        start_ = (run / "checkpoints/step-000000/policy/model.safetensors").read_bytes()
        assert found[-1] != start_
    assert found[0] == found[1]


def test_retries_begin_where_the_thought_was_cut(policy: CausalLM) -> None:
    with collect(seen := Collector()):
        out = rolled(policy, entropy=True)
    episodes = plain(policy, *asked(policy), True, world=world())
    count = len(episodes)
    for name in ("tokens", "logp_old", "entropy_old", "turn", "step_rewards", "state_key", "mask"):
        width = min(out[name].shape[1], episodes[name].shape[1])
        assert torch.equal(out[name][:count, :width], episodes[name][:, :width]), name
    assert (out["ran"][:count] == -1).all() and (out["ran"][count:] >= 0).all()
    failed = [(i, u) for i, e in enumerate(episodes.episodes) for u, x in enumerate(e.infos) if x.get("ran") is False]
    assert len(failed) == len(out.prompts) - 3 > 3
    assert out["groups"][count:].tolist() == [g for g in range(3, len(out.prompts)) for _ in range(6)]
    kept, (ask,) = [], policy.encode_completion("?")
    for group, (row, turn) in zip(range(3, len(out.prompts)), failed, strict=True):
        prompt = out.prompts[group]
        said = episodes["tokens"][row, episodes["turn"][row] == turn].tolist()
        kept.append(max(said.index(ask) - 1, 0))
        first = int((episodes["turn"][row] == turn).nonzero()[0])
        whole = [*episodes.prompts[row // 8].tokens, *episodes["tokens"][row].tolist()]
        assert list(prompt.tokens) == whole[: len(episodes.prompts[row // 8].tokens) + first + kept[-1]]
        assert prompt.row == episodes.prompts[row // 8].row and prompt.index == row // 8
        for i in (out["groups"] == group).nonzero().flatten().tolist():
            (said,), (answer,) = out.episodes[i].actions, out.episodes[i].observations
            assert said == policy.decode(list(prompt.tokens)[len(prompt.tokens) - kept[-1] :]) + out.texts[i]
            assert answer == f"{turn + 1}>" and int(out["lengths"][i]) <= TOKENS - kept[-1]
            assert out["ran"][i] == ("?1" in said and said.index("?1") == said.index("?"))
            assert out["step_rewards"][i, 0] == float(out["ran"][i]) / 4
            assert out["state_key"][i, 0] == episodes["state_key"][row, turn]
    assert max(kept) > 0 and len(set(out.texts[count:])) > 6
    assert 0 < out["ran"][count:].float().mean() < 1
    with torch.no_grad():
        scored = policy.score(out, ("logp", "entropy"))
    torch.testing.assert_close(scored["logp"][out["mask"]], out["logp_old"][out["mask"]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scored["entropy"][out["mask"]], out["entropy_old"][out["mask"]], atol=1e-5, rtol=1e-5)
    assert seen.means()["retries/lost_share"] == 0.0 and 0 < seen.means()["retries/failed_share"] < 1
    assert len(out.sampled()) == count  # metrics and curricula see the task alone


def test_how_many_calls_are_taken_back(policy: CausalLM) -> None:
    one, every = rolled(policy, calls=1), rolled(policy)
    assert len(one.prompts) == 6 < len(every.prompts)
    assert {p.tokens for p in one.prompts} < {p.tokens for p in every.prompts}
    assert len(rolled(policy, calls=0).prompts) == 3
    again = rolled(policy, calls=1)
    assert torch.equal(again["tokens"], one["tokens"])
    assert again.texts == one.texts
    few = retried_calls(
        policy, *asked(policy), False, replace(world(), processes=5), calls=1, retries=6, back=1, begins="?"
    )
    assert few.texts == one.texts and torch.equal(few["ran"], one["ran"])  # with some episodes at a time
    anew = rolled(policy, begins="no such text")  # then the whole action is
    assert {len(p.tokens) for p in anew.prompts[3:]} <= {len(p.tokens) for p in rolled(policy, back=99).prompts}


def test_what_the_world_fails_or_answers_otherwise_is_left_out(policy: CausalLM) -> None:
    Fickle.played = 0
    with collect(seen := Collector()):
        out = rolled(policy, make=Fickle)
    turns = [e.states for e in out.episodes[24:]]
    assert 0 < seen.means()["retries/lost_share"] < 1
    assert turns and all(s[0] in {"12>", "3>", "a>"} for s in turns)  # only first actions need no replay
    assert sorted(set(out["groups"].tolist())) == list(range(len(out.prompts)))


def test_a_retry_that_the_budget_cuts_off_earns_nothing(policy: CausalLM) -> None:
    prompts, seeds, _ = asked(policy)
    long = replace(world(), turn_tokens=None)
    out = retried_calls(
        policy, prompts, seeds, Sampling(max_tokens=24), False, long, calls=-1, retries=48, back=0, begins="?"
    )
    begun = [len(out.prompts[g].tokens) - len(prompts[out.prompts[g].index].tokens) for g in out["groups"].tolist()]
    cut = (out["ran"] >= 0) & out["truncated"]
    assert cut.any() and (torch.tensor(begun) + out["lengths"])[cut].eq(24).all() and (out["ran"][cut] == 0).all()
    assert any(out.episodes[i].infos[0].get("ran") for i in cut.nonzero().flatten().tolist())  # though it ran


def test_settings_that_make_no_sense_are_refused(policy: CausalLM) -> None:
    for wrong in ({"retries": 1}, {"back": -1}, {"calls": -2}):
        with pytest.raises(RecipeError, match="retried_calls needs 2 retries or more"):
            rolled(policy, **wrong)
    narrow: Any = object()
    for said, other in {"a context": {"context": narrow}, "several agents": {"agents": ("a", "b")}}.items():
        with pytest.raises(RecipeError, match=f"this world has {said}"):
            retried_calls(policy, *asked(policy), False, replace(world(), **other))


def test_calls_that_all_fail_again_have_no_gradient() -> None:
    """Not even by the likelihood term: nobody in the group has a positive advantage."""
    t = inputs.tensors(inputs.table("random", 1))
    t["ran"] = torch.where(t["groups"] == t["groups"][0], 0, -1)
    t["logp"].requires_grad_()
    advantages, value = of_pieces(t)
    (slope,) = torch.autograd.grad(value, t["logp"])
    assert (t["ran"] == 0).sum() > 1 and (advantages[t["ran"] == 0] == 0).all() and (slope[t["ran"] == 0] == 0).all()
    assert (slope[t["ran"] < 0] != 0).any()


CALCULATOR = [
    "task={calculator: {digits: 1, train: 40, held_out: 8}}", "threads=1", "steps=2", "draw.prompts=4", "seed=1",
    "model={init: {layers: 1, width: 16, heads: 2, context: 64}}", "rollout.group_size=8", "rollout.max_tokens=40",
    "evaluation.prompts=4", "optimizer.lr=1e-3", "log.rollouts_every=1", "checkpoint.every=2",
    "warm_start={steps: 20, batch: 16, lr: 5.0e-3}",
    "rollout.strategy={retried_calls: {retries: 8, begins: '?', back: 0}}",
]  # fmt: skip


def test_a_run_in_the_world_of_the_calculator(tmp_path: Path) -> None:
    run = start(resolve(method="thor", overrides=CALCULATOR), tmp_path / "run", quiet=True)
    steps = [row for row in run.metrics if "reward/mean" in row]
    assert len(steps) == 2 and any(row["retries/share"] > 0 for row in steps)
    assert all(math.isfinite(v) for row in steps for v in row.values() if isinstance(v, float))
    files = [run.path / f"checkpoints/step-00000{s}/policy/model.safetensors" for s in (0, 2)]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_the_calculator_says_which_calls_ran(tmp_path: Path) -> None:
    env = Calculator()
    env.reset({"answer": "12"})
    said = [env.step(a).info.get("ran") for a in ("?3*4", "?3*", "!12", "3*4")]
    assert said == [True, False, None, None]
    run = build(resolve(method="thor", overrides=CALCULATOR))
    batch = collected(run, 0, Clock())
    assert batch is not None
    batch = select(run, credit(run, batch, 0, Clock()), 0, Clock())
    retried = batch["ran"] >= 0
    assert retried.any() and torch.equal(batch["rewards"][retried], batch["ran"][retried].float())
    assert int(batch["ticket"].max()) + 1 == len(batch.prompts) > 4
