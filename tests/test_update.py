"""The real update on a real (tiny) policy: what is cut, dropped or late does not change what is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie import loop
from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.errors import PolicyError, RecipeError
from coterie.microbatches import microbatches
from coterie.policies.replay import Replay
from coterie.recipe import resolve
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.update import update
from tests.e2e.conftest import TINY

# dense rewards give every group a spread; the seed keeps prompts and weights the same over all runs of a test
DENSE = [*TINY, "task.dense=true", "rollout.group_size=6"]
OBJECTIVES = [
    "grpo",
    "dr-grpo",
    "dapo",
    "gspo",
    "gspo-token",
    "cispo",
    "opmd",
    "asymre",
    "rloo",
    "reinforce++-baseline",
]


def make(*overrides: str, method: str = "grpo") -> Run:
    if method == "dapo":
        overrides = ("selection.filters.dynamic_sampling.metric=rewards", *overrides)
    return build(resolve(method=method, overrides=[*DENSE, *overrides]))


def batch_of(run: Run) -> Rollouts:
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None
    return loop.select(run, loop.credit(run, batch, 0, Clock()), 0, Clock())


def gradients(run: Run, batch: Rollouts) -> dict[str, Tensor]:
    """The gradient of one update: captured at the optimizer's step, which is then not taken."""
    found: dict[str, Tensor] = {}

    def stop(*args: Any, **kwargs: Any) -> None:
        for name, p in run.policy.model.named_parameters():
            found[name] = p.grad.detach().clone()

    run.optimizer.step = stop  # type: ignore[method-assign]
    run.settings.update.max_grad_norm = 1e9
    update(run, batch, 0, Clock())
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], scale: float = 1.0) -> None:
    for name in a:
        torch.testing.assert_close(a[name] * scale, b[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("method", OBJECTIVES)
def test_the_gradient_does_not_depend_on_the_micro_batches(method: str) -> None:
    run = make(method=method)
    batch = batch_of(run)
    run.settings.update.tokens_per_microbatch = 10**9
    whole = gradients(run, batch)
    assert any(g.abs().max() > 1e-6 for g in whole.values())
    for budget in (60, 1):
        run.settings.update.tokens_per_microbatch = budget
        assert_same(gradients(run, batch), whole)


def test_the_gradient_is_that_of_the_formula_written_out() -> None:
    """GRPO on policy, computed with a plain forward of the model row by row."""
    run = make()
    batch = batch_of(run)
    got = gradients(run, batch)
    run.policy.model.zero_grad()
    loss = torch.zeros(())
    rewards, groups = batch["rewards"], batch["groups"]
    for i in range(len(batch)):
        mine = rewards[groups == groups[i]]
        a = (rewards[i] - mine.mean()) / (mine.std() + 1e-4) if mine.max() > mine.min() else torch.tensor(0.0)
        prompt, n = list(batch.prompts[int(groups[i])].tokens), int(batch["lengths"][i])
        ids = torch.tensor([prompt + batch["tokens"][i, :n].tolist()])
        logits = run.policy.model(ids).logits[0, len(prompt) - 1 : -1]
        logp = logits.log_softmax(-1).gather(-1, batch["tokens"][i, :n, None]).squeeze(-1)
        loss = loss - a * (logp - logp.detach()).exp().mean() / len(batch)
    loss.backward()
    assert_same({n: p.grad for n, p in run.policy.model.named_parameters()}, got)


@pytest.mark.parametrize("method", ["grpo", "dapo", "gspo", "opmd"])
def test_a_dropped_rollout_is_as_if_it_had_not_been_there(method: str) -> None:
    """Weight 0 leaves numerator and denominator: the same gradient as an update without those rows."""
    run = make(method=method)
    batch = batch_of(run)
    keep = torch.arange(len(batch)) % 3 != 0
    dropped = batch.with_columns(weights=keep.float())
    assert_same(gradients(run, dropped), gradients(run, batch.rows(keep)))


def test_half_a_weight_is_half_a_gradient() -> None:
    run = make()
    batch = batch_of(run)
    half = batch.with_columns(weights=torch.full_like(batch["rewards"], 0.5))
    assert_same(gradients(run, batch), gradients(run, half), scale=0.5)


def test_on_policy_the_ratio_is_1_and_the_loss_0() -> None:
    run = make()
    batch = batch_of(run)
    gradients(run, batch)
    assert run.metrics["mismatch/max_abs"] < 1e-5
    assert run.metrics["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
    assert run.metrics["loss/total"] == pytest.approx(0.0, abs=1e-6)


def test_a_sampler_that_is_not_the_trainer_is_noticed_on_the_first_update() -> None:
    run = make()
    batch = batch_of(run)
    with torch.no_grad():
        for p in run.policy.trainable_parameters():
            p.add_(torch.randn_like(p) * 0.05)
    with pytest.raises(PolicyError, match=r"differ from the sampler's by .*first update"):
        update(run, batch, 0, Clock())


def test_log_probs_of_the_trainer_may_stand_for_the_samplers() -> None:
    run = make("update.recompute_logp=true")
    batch = batch_of(run)
    update(run, batch.with_columns(logp_old=batch["logp_old"] - 0.3), 0, Clock())
    assert run.metrics["mismatch/max_abs"] < 1e-5


def test_later_mini_batches_are_off_policy_and_groups_stay_whole() -> None:
    run = make("update.epochs=2", "update.minibatches=2", "optimizer.lr=1e-2", method="grpo+ppo-clip")
    batch = batch_of(run)
    seen: list[set[int]] = []
    score = run.policy.score

    def spy(rollouts: Rollouts, want: Any = ("logp",)) -> Any:
        seen.append(set(rollouts["groups"].tolist()))
        return score(rollouts, want)

    run.policy.score = spy  # type: ignore[method-assign]
    update(run, batch, 0, Clock())
    assert run.metrics["update/optimizer_steps"] == 4 and run.policy.version == 4
    assert run.metrics["mismatch/max_abs"] > 1e-4
    assert not seen[0] & seen[1] and seen[0] | seen[1] == seen[2] | seen[3]


def test_stale_batches_wait_their_turn(tmp_path: Path) -> None:
    run = make("update.staleness=2")
    batches = [batch_of(run) for _ in range(4)]
    out = [loop.delay(run, b) for b in batches]
    assert out[0] is None and out[1] is None and out[2] is batches[0] and out[3] is batches[1]
    run.save(tmp_path)
    again = make("update.staleness=2")
    again.restore(tmp_path)
    assert len(again.pending) == 2
    assert torch.equal(again.pending[0]["tokens"], batches[2]["tokens"]) and again.pending[0].texts == batches[2].texts


def test_micro_batches_hold_every_row_once_and_keep_to_the_budget() -> None:
    run = make()
    batch = batch_of(run)
    for budget in (1, 30, 10**6):
        parts = microbatches(batch, budget)
        assert sorted(torch.cat(parts).tolist()) == list(range(len(batch)))
        for part in parts:
            width = max(len(batch.prompts[g].tokens) for g in batch["groups"][part].tolist())
            assert len(part) == 1 or len(part) * (width + int(batch["lengths"][part].max())) <= 2 * budget
    for part in microbatches(batch, 1, whole_groups=True):
        assert len(batch["groups"][part].unique()) == 1 and len(part) == 6


@pytest.mark.parametrize(
    ("optimizer", "key", "want"),
    [
        ("optimizer.beta1={from: 0.9, to: 0.5, over: 2}", "betas", [(0.9, 0.999), (0.7, 0.999), (0.5, 0.999)]),
        ("optimizer={sgd: {momentum: {from: 0, to: 0.8, over: 2}}}", "momentum", [0.0, 0.4, 0.8]),
        ("optimizer.weight_decay={from: 0, to: 0.2, over: 2}", "weight_decay", [0.0, 0.1, 0.2]),
    ],
)
def test_every_setting_of_the_optimizer_follows_its_schedule(optimizer: str, key: str, want: list[Any]) -> None:
    run = make(optimizer)
    for step, value in enumerate(want):
        update(run, batch_of(run), step, Clock())
        assert run.optimizer.param_groups[0][key] == pytest.approx(value)


def test_a_schedule_that_leaves_what_the_optimizer_takes_is_refused() -> None:
    run = make("optimizer.lr={from: 1e-3, to: -1e-3, over: 1}")
    update(run, batch_of(run), 0, Clock())
    with pytest.raises(RecipeError, match=r"optimizer=adamw, step 1: Invalid learning rate: -0.001"):
        update(run, batch_of(run), 1, Clock())


def test_the_first_mini_batch_is_on_policy_and_the_next_is_not() -> None:
    run = make("update.minibatches=2", "optimizer.lr=1e-2", method="grpo+ppo-clip")
    run.settings.update.epochs = 1
    batch = batch_of(run)
    gaps: list[float] = []
    score = run.policy.score

    def spy(rollouts: Rollouts, want: Any = ("logp",)) -> Any:
        found = score(rollouts, want)
        gaps.append(float((found["logp"].detach() - rollouts["logp_old"]).abs().max()))
        return found

    run.policy.score = spy  # type: ignore[method-assign]
    update(run, batch, 0, Clock())
    assert len(gaps) == 2 and gaps[0] < 1e-5 < 1e-4 < gaps[1]


def test_nothing_with_weight_is_no_update() -> None:
    run = make()
    batch = batch_of(run)
    before = {n: p.detach().clone() for n, p in run.policy.model.named_parameters()}
    update(run, batch.with_columns(weights=torch.zeros_like(batch["rewards"])), 0, Clock())
    assert run.metrics["update/optimizer_steps"] == 0 and run.policy.version == 0
    assert all(torch.equal(before[n], p) for n, p in run.policy.model.named_parameters())


def test_a_dropped_row_may_hold_anything() -> None:
    """NaN in the columns of a rollout without weight reaches neither gradient nor metrics."""
    run = make()
    batch = batch_of(run)
    keep = torch.arange(len(batch)) % 4 != 0
    poison = torch.where(keep, 0.0, torch.nan)
    poisoned = batch.with_columns(weights=keep.float(), logp_old=batch["logp_old"] + poison.unsqueeze(-1))
    assert_same(gradients(run, poisoned), gradients(run, batch.rows(keep)))
    assert all(v == v for v in run.metrics.values())


def test_the_gradient_is_the_same_in_float64_to_the_last_digits() -> None:
    """Cutting into micro-batches is a different order of the same sum, not an approximation.

    GPT-2, because Llama's norms compute in float32 whatever the model's dtype.
    """
    run = make("draw.prompts=6", "model.init.family=gpt2", method="dapo")
    batch = batch_of(run)
    run.policy.model.double()
    run.settings.update.recompute_logp = True
    batch = batch.with_columns(logp_old=batch["logp_old"].double(), advantages=batch["advantages"].double(),
                               weights=batch["weights"].double())  # fmt: skip
    whole = gradients(run, batch)
    assert next(iter(whole.values())).dtype == torch.float64
    for budget in (40, 1):
        run.settings.update.tokens_per_microbatch = budget
        cut = gradients(run, batch)
        for name in whole:
            torch.testing.assert_close(cut[name], whole[name], atol=1e-12, rtol=1e-9)


def test_what_generation_computed_makes_no_difference_but_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    locate = Replay.locate

    def counting(self: Replay, *args: Any) -> Any:
        found = locate(self, *args)
        read.append(0 if found is None else len(found))
        return found

    monkeypatch.setattr(Replay, "locate", counting)
    found = []
    for keep in (0, 64):
        run = make(f"update.keep_mib={keep}", "update.tokens_per_microbatch=16")
        batch = batch_of(run)
        assert not read
        found.append(gradients(run, batch))
    assert len(read) > 1 and all(read)  # a batch of several micro-batches, all of them read
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
