"""A schedule that is part of the policy: what it does, exact log-probs of both kinds of decisions, and learning it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import co_grpo as oracle

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect as collect_batch
from coterie.credit import group_norm
from coterie.errors import CoterieError
from coterie.grading import completion_ids
from coterie.loop import credit, select
from coterie.metrics import Collector, collect
from coterie.objectives.ratios import sequence, token
from coterie.objectives.trust_regions import ppo_clip
from coterie.policies.masked_diffusion.learned import Schedule, count, temperature
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
from coterie.policies.masked_diffusion.tiny import TinyMaskedSpec
from coterie.policies.reference import Reference
from coterie.recipe import resolve
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.sections import Rollout, Settings, Unmask
from coterie.update import update
from tests.e2e.conftest import TINY

WIDTH, STEPS = 8, 4
LEARNED = [*TINY, "model.kind=masked_diffusion", "unmask.steps=2"]


def make(steps: int = STEPS, explore: float = 0.8, double: bool = False, **unmask: Any) -> MaskedDiffusion:
    init = TinyMaskedSpec(layers=2, width=16, heads=2, context=24, vocabulary="abcdefgh")
    how = Unmask(steps=steps, learned=True, explore=explore, **unmask)
    settings = Settings(unmask=how, rollout=Rollout(max_tokens=WIDTH))
    policy = MaskedDiffusion.load(MaskedDiffusionSpec(init=init, seed=1, device="cpu"), settings)
    for name, p in policy.model.named_parameters():
        p.data = 0.002 * torch.randn(p.shape) if name.startswith("schedule") else p.data * 4
    if double:
        policy.model.double()
    return policy


def roll(policy: MaskedDiffusion, **sampling: Any) -> Rollouts:
    made = [Prompt(policy.encode(text), index=i) for i, text in enumerate(("ab", "habc", "d"))]
    seeds = [[100 * i + k for k in range(6)] for i in range(len(made))]
    return policy.rollout(made, seeds, Sampling(max_tokens=WIDTH, **sampling), entropy=True)


@pytest.mark.oracle("co-grpo")
@given(
    u=st.tuples(st.floats(-4, 4), st.floats(-6, 6)), m=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    left=st.integers(1, 40), steps=st.integers(1, 9),
)  # fmt: skip
def test_actions_against_the_oracle(u: Any, m: Any, left: int, steps: int) -> None:
    schedule = Schedule(3, 0.3, 100.0).double()
    schedule.weight.data[1] = torch.tensor(m, dtype=torch.float64) / 100.0
    action = torch.tensor([u], dtype=torch.float64)
    got = float(schedule.logp(action.unsqueeze(1).expand(1, 2, 2))[0, 1].detach())
    if abs(u[0] - m[0]) < 3 and abs(u[1] - m[1]) < 3:  # the oracle's density underflows elsewhere
        assert got == pytest.approx(oracle.density(u, m, 0.3), rel=1e-6)
    assert float(temperature(action)[0]) == pytest.approx(oracle.temperature(u))
    assert int(count(action, torch.tensor([left]), steps)) == oracle.places(u, left, steps)


@pytest.mark.oracle("co-grpo")
def test_numbers_of_the_catalogue() -> None:
    """The joint ratio is the product of both; clipped and averaged over the group."""
    old = torch.zeros(2, 2, dtype=torch.float64)
    new = torch.tensor([[0.1, 0.0], [0.0, 0.0]], dtype=torch.float64)
    acted = torch.tensor([[0.1], [0.0]], dtype=torch.float64)
    mask = torch.ones(2, 2) > 0
    ratio = sequence(new, old, mask) * token(acted, old[:, :1], mask[:, :1])[:, 0]
    assert ratio.tolist() == pytest.approx([1.1618, 1.0], abs=1e-4)
    advantages = group_norm(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2).long(), scale="std")
    value = -ppo_clip(ratio, advantages, eps_low=0.2, eps_high=0.2).mean()
    want = oracle.loss(new.tolist(), acted[:, 0].tolist(), [1.0, 0.0], 0.2)
    assert float(value) == pytest.approx(want, rel=1e-9)
    assert want == pytest.approx(-0.05721, abs=5e-6)


@pytest.mark.parametrize("settings", [{}, {"blocks": 2}, {"order": "random"}, {"after_end": True}])
@pytest.mark.parametrize(("double", "bound"), [(False, 1e-5), (True, 1e-9)])
@torch.no_grad()
def test_recomputed_is_sampled(settings: dict[str, Any], double: bool, bound: float) -> None:
    policy = make(double=double, **settings)
    made = roll(policy, temperature=0.8)
    assert made["mask"].shape == (18, WIDTH + STEPS) == made["schedules"].shape
    own = policy.score(made, {"logp", "entropy"})
    for name, column in (("logp", "logp_old"), ("entropy", "entropy_old")):
        torch.testing.assert_close(own[name], torch.where(made["mask"], made[column], 0.0), atol=bound, rtol=0)
    for row in range(0, 18, 5):
        part = made.rows(torch.tensor([row]))
        alone = policy.score(part)["logp"][0]
        torch.testing.assert_close(alone, own["logp"][row, : len(alone)], atol=bound, rtol=0)


def test_a_pass_does_what_its_action_says() -> None:
    made = roll(make(eos_from=0.0))
    canvas, unmasked, actions = (made.media[n] for n in ("canvas", "unmasked", "actions"))
    acted = made["mask"][:, WIDTH:]
    assert torch.equal(acted.sum(-1), made["passes"]) and (actions[~acted] == 0).all()
    assert torch.equal(made["lengths"], made["mask"].sum(-1))
    assert len({tuple(a) for a in actions[:, 0].tolist()}) == 18  # each rollout explores by itself
    different = set()
    for row in range(18):
        left = WIDTH
        for number in range(int(made["passes"][row])):
            filled = int((unmasked[row] == number).sum())
            assert filled == oracle.places(actions[row, number].tolist(), left, STEPS - number)
            left -= filled
            different.add((number, filled))
    assert len(different) > STEPS  # not one plan for all
    assert canvas.shape == (18, WIDTH)


def test_graders_read_tokens_and_people_read_actions() -> None:
    policy = make()
    made = roll(policy)
    for ids, row, mask in zip(completion_ids(made), made["tokens"], made["mask"], strict=True):
        ends = mask[:WIDTH].nonzero()
        assert ids == row[: int(ends[-1]) + 1 if len(ends) else 0].tolist()
    for texts, mask in zip(policy.decision_texts(made), made["mask"], strict=True):
        assert len(texts) == int(mask.sum())
        tokens, passes = int(mask[:WIDTH].sum()), int(mask[WIDTH:].sum())
        assert [t.startswith(" [×") for t in texts] == [False] * tokens + [True] * passes


@pytest.mark.reduction("co-grpo")
@torch.no_grad()
def test_undecided_and_greedy_it_is_the_plan() -> None:
    """Means of 0 and no noise: the fixed schedule's canvases, pass by pass."""
    policy = make()
    assert policy.schedule is not None
    policy.schedule.weight.data.zero_()
    fixed = make()
    fixed.schedule = None
    one, other = roll(policy, temperature=0.0), roll(fixed, temperature=0.0)
    assert torch.equal(one.media["canvas"], other.media["canvas"])
    assert torch.equal(one.media["unmasked"], other.media["unmasked"])


@pytest.mark.reduction("co-grpo")
def test_neither_kind_of_decision_moves_the_other() -> None:
    """The schedule's log-probs have no gradient in the model (a pure search where that is frozen), nor the reverse."""
    policy = make(double=True)
    made = roll(policy)
    assert policy.schedule is not None
    logp = policy.score(made)["logp"]
    logp[:, WIDTH:].sum().backward(retain_graph=True)
    of_model = [p for n, p in policy.model.named_parameters() if not n.startswith("schedule")]
    assert all(p.grad is None or not p.grad.any() for p in of_model) and policy.schedule.weight.grad.any()
    z = (made.media["actions"] - policy.schedule.mean().detach()) / 0.8**2
    want = (z * made["mask"][:, WIDTH:].unsqueeze(-1)).sum(0)
    torch.testing.assert_close(policy.schedule.weight.grad, want)  # as if the weight were the mean
    policy.model.zero_grad()
    logp[:, :WIDTH].sum().backward()
    assert policy.schedule.weight.grad is None or not policy.schedule.weight.grad.any()


def test_means_move_faster_than_weights() -> None:
    schedule = Schedule(2, 0.3, 100.0)
    optimizer = torch.optim.SGD(schedule.parameters(), lr=1e-3)
    (schedule.mean() * torch.tensor([1.0, -2.0])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(schedule.mean().detach(), torch.tensor([[-0.1, 0.2]] * 2))


def test_saved_and_loaded_it_goes_on(tmp_path: Path) -> None:
    policy = make()
    policy.save(tmp_path / "model")
    assert policy.model.schedule is policy.schedule  # still there
    settings = Settings(unmask=Unmask(steps=STEPS, learned=True, explore=0.8), rollout=Rollout(max_tokens=WIDTH))
    again = MaskedDiffusion.load(MaskedDiffusionSpec(name=str(tmp_path / "model"), device="cpu"), settings)
    assert torch.equal(roll(again).media["actions"], roll(policy).media["actions"])
    assert again.state_dict().keys() == policy.state_dict().keys()
    plain = MaskedDiffusion.load(MaskedDiffusionSpec(name=str(tmp_path / "model"), device="cpu"), Settings())
    assert plain.schedule is None
    reference = Reference(policy)
    before = policy.schedule.weight.clone()
    policy.schedule.weight.data.add_(0.01)
    made = roll(policy)
    gap = (policy.score(made)["logp"] - reference.score(made)["logp_ref"])[:, WIDTH:].abs().sum()
    assert gap > 1.0 and torch.allclose(policy.schedule.weight, before + 0.01)


@pytest.mark.parametrize("field", ["temperature", "speed"])
def test_it_learns_what_the_reward_asks_for(field: str) -> None:
    """Cooler, where cold rollouts are rewarded; fewer passes, where tokens a pass are."""
    functions = ["coterie.rewards.speed:speed"] if field == "speed" else []
    overrides = [*LEARNED, "unmask.steps=4", "unmask.after_end=true", "rollout.group_size=8", "optimizer.lr=1e-3"]
    run = build(resolve(method="co-grpo", functions=functions, overrides=overrides))
    policy = run.policy
    assert isinstance(policy, MaskedDiffusion) and policy.schedule is not None
    seen = []
    for step in range(12):
        run.metrics = {}
        with collect(found := Collector()):
            batch = collect_batch(run, step, Clock())
            assert batch is not None
            if field == "temperature":
                batch = batch.with_columns(rewards=-batch.media["actions"][:, :, 0].sum(-1))
            batch = select(run, credit(run, batch, step, Clock()), step, Clock())
        update(run, batch, step, Clock())
        seen.append(found.means()["schedule/temperature" if field == "temperature" else "schedule/places"])
    assert run.metrics["grad/norm"] > 0
    if field == "temperature":
        assert sum(seen[-3:]) / 3 < 0.75 * sum(seen[:3]) / 3
    else:
        assert sum(seen[-3:]) / 3 > 1.15 * sum(seen[:3]) / 3


def test_what_does_not_go_together_is_refused() -> None:
    for settings in ("unmask.threshold=0.5", "unmask.growth=ascending", "unmask.likelihood=elbo"):
        with pytest.raises(CoterieError, match=r"unmask\.learned"):
            resolve(method="co-grpo", overrides=[*TINY, "rollout.max_tokens=8", settings])
    with pytest.raises(CoterieError, match=r"unmask\.explore"):
        resolve(overrides=[*TINY, "model.kind=masked_diffusion", "unmask.explore=0.1"])
