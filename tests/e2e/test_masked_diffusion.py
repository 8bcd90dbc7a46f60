"""The masked-diffusion policy on the loop: every piece runs on its rollouts, and a killed run ends as if it had not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_conformance import SETTINGS, name

from coterie import api
from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.columns import COLUMNS
from coterie.errors import RecipeError
from coterie.loop import credit, select
from coterie.metrics import Collector
from coterie.pieces import TABLE_KINDS, Piece
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.provide import provide
from coterie.recipe import resolve
from coterie.registry import all_pieces
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.update import _loss, update
from tests.e2e.conftest import DENOISES, TINY
from tests.e2e.processes import Command, finish, wait_for
from tests.e2e.test_resume import assert_same_run

MASKED = [*TINY, "model.kind=masked_diffusion", "task.dense=true", "unmask.steps=2"]
PIECES = [p for p in all_pieces() if p.kind in TABLE_KINDS and p.module.startswith("coterie.")]
LACKING = [p for p in PIECES if MaskedDiffusion.lacks.keys() & {*p.required}]
SLOTS = {
    "shaping": "rewards.shaping", "baseline": "credit.baseline", "modifier": "credit.modifiers",
    "filter": "selection.filters", "selection": "selection.weights", "ratio": "objective.ratio",
    "trust_region": "objective.trust_region", "loss": "objective.loss", "term": "objective.terms",
    "aggregation": "objective.aggregation",
}  # fmt: skip


@pytest.fixture(scope="module")
def run() -> Run:
    return build(resolve(overrides=MASKED))


@pytest.fixture(scope="module")
def batch(run: Run) -> Rollouts:
    """Real rollouts, with what an environment or a user's functions would add."""
    run.metrics = {}
    found = collect(run, 0, Clock())
    assert found is not None
    found = found.with_columns(**run.policy.score(found, {"entropy"}))
    found = select(run, credit(run, found, 0, Clock()), 0, Clock())
    rng = torch.Generator().manual_seed(0)
    rows, mask = len(found), found["mask"]
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    extra = {
        "components": {"exact": found["rewards"], "format": draw(rows)},
        "turn": torch.where(mask, found["pass_index"], -1),
        "state_key": torch.randint(3, (rows, 2), generator=rng),
        "step_rewards": draw(rows, 2),
        "other_rewards": draw(rows, 2),
        "episode": torch.arange(rows),
        "turns_after": torch.zeros(rows, dtype=torch.int64),
        "ran": torch.randint(-1, 2, (rows,), generator=rng),
        "parent": torch.arange(rows),
        "branch": torch.full((rows,), -1),
        "answers": torch.randint(3, (rows,), generator=rng),
        "answer_mask": mask,
        "token_rewards": mask * draw(*mask.shape),
        "drift": draw(rows).abs(),
        "entropy_old": found["entropy"].detach(),
        "entropy": found["entropy"].detach(),
        "logp_ref": found["logp_old"] - 0.1,
        "advantages": draw(rows),
        "logp_train": found["logp_old"] + 0.01 * mask,
        "heat": torch.ones(rows),
        "schedules": torch.zeros_like(mask),
        "given": mask & (draw(*mask.shape) > 0),
    }
    sizes = {"B": rows, "T": mask.shape[1]}
    for other in COLUMNS.values():  # what further strategies and pieces make
        axes = other.shapes[0].split()
        if other.dtype == "bool" and other.name not in found and {*axes} <= {*sizes}:
            extra[other.name] = draw(*(sizes[a] for a in axes)) > 0
    return found.with_columns(**extra)


@pytest.mark.parametrize("piece", [p for p in PIECES if p not in LACKING], ids=name)
def test_every_piece_runs_unchanged(piece: Piece, run: Run, batch: Rollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the update on the rollouts themselves; in the update with the policy's own differentiable log-probs."""
    bound = piece.bind({"loss/discriminative": {"above": 0.2}, **SETTINGS}.get(name(piece), {}))
    monkeypatch.setattr(run, "reward_weights", {"exact": 1.0, "format": 0.5})
    if piece.kind in ("ratio", "trust_region", "loss", "term"):
        single, chain = dict(run.recipe.single), {**run.recipe.chain, "objective.terms": []}
        if piece.kind == "term":
            chain["objective.terms"] = [bound]
        else:
            single[SLOTS[piece.kind]] = bound
        monkeypatch.setattr(run.recipe, "single", single)
        monkeypatch.setattr(run.recipe, "chain", chain)
        monkeypatch.setattr(run, "score_columns", {"logp", "entropy"} & {"logp", *piece.required})
        run.policy.model.zero_grad()
        coefficients = single["objective.aggregation"](run.table(batch, 1), 1)
        _loss(run, batch, coefficients, 1, Collector()).backward()
        assert any(p.grad is not None and (p.grad != 0).any() for p in run.policy.trainable_parameters())
        return
    table = run.table(batch, 1)
    missing = {c for c in piece.required if c not in table}
    if "logp" in missing:
        table |= {k: v.detach() for k, v in run.policy.score(batch, {"logp"}).items()}
    if "pass_index" in piece.required:
        assert not missing
    out = bound(table, 1)
    where = batch["mask"] if out.dim() == 2 else torch.ones(len(batch), dtype=torch.bool)
    assert out[where].isfinite().all()


def test_language_pieces_that_make_no_sense_say_so(tmp_path: Path) -> None:
    assert LACKING
    for piece in LACKING:
        columns = "|".join(c for c in piece.required if c in MaskedDiffusion.lacks)
        value: Any = {piece.slug: SETTINGS.get(name(piece), {})}
        chained = piece.kind in ("shaping", "modifier", "filter", "selection", "term")
        recipe = resolve(values={SLOTS[piece.kind]: [value] if chained else value}, overrides=MASKED)
        with pytest.raises(RecipeError, match=f"'({columns})' .* a policy of unmaskings does not have"):
            build(recipe)
    strategies = [p for p in all_pieces() if p.kind == "strategy" and p.module.startswith("coterie.")]
    needs: dict[str, Any] = {"growing_horizon": {"turns": [2]}, "swarm": {"path": str(tmp_path)}}
    for own, overrides in (("unmaskings", MASKED), ("denoising steps", [*TINY, *DENOISES])):
        for piece in strategies:
            if piece.decisions not in (None, own):
                said = f"rollout.strategy={piece.slug} (drives a policy of {piece.decisions}|plays in a world)"
                with pytest.raises(RecipeError, match=said):
                    named = {piece.slug: needs.get(piece.slug, {})}
                    build(resolve(values={"rollout.strategy": named}, overrides=overrides))
    with pytest.raises(RecipeError, match=r"rollout\.sampler=ode is a rule for denoising steps"):
        build(resolve(overrides=[*MASKED, "rollout.sampler=ode"]))
    with pytest.raises(RecipeError, match=r"objective\.imitation"):
        build(resolve(method="chord", overrides=MASKED))
    with pytest.raises(RecipeError, match=r"rollout\.stop"):
        build(resolve(overrides=[*MASKED, "rollout.stop=[x]"]))
    with pytest.raises(RecipeError, match=r"unmask\.steps"):
        build(resolve(overrides=[*TINY, "unmask.steps=2"]))
    with pytest.raises(RecipeError, match="masked_diffusion"):
        build(resolve(overrides=[*TINY, "model.kind=masked-diffusion"]))


def test_every_epoch_of_an_estimate_has_noise_of_its_own_and_begins_on_policy() -> None:
    overrides = [*MASKED, "update.epochs=3", "optimizer.lr=1e-30"]
    run = build(resolve(method="diffu-grpo", overrides=overrides))
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = run.policy.score

    def spy(rollouts: Rollouts, want: Any = ("logp",)) -> Any:
        seen.append((rollouts.media["noise"].clone(), rollouts["logp_old"].clone()))
        return original(rollouts, want)

    ready = select(run, credit(run, batch, 0, Clock()), 0, Clock())
    run.policy.score = spy  # type: ignore[method-assign]
    update(run, ready, 0, Clock())
    noises = {tuple(noise.tolist()) for noise, _ in seen}
    assert len(noises) >= 3
    assert run.metrics["mismatch/max_abs"] < 1e-5  # with a rate of nothing, old and new are one policy in each epoch
    assert run.metrics["kl/ref"] == pytest.approx(0.0, abs=1e-9)
    again = provide(run, ready, "objective", 0, Clock())
    assert not torch.allclose(again["logp_old"], ready["logp_old"])  # the estimate takes the sampler's place


TRAJECTORY = ["--method", "cj-grpo", "update.epochs=2", "steps=8", "checkpoint.every=2", "warm_start.steps=3"]


def test_killed_and_resumed_it_ends_bit_for_bit(tmp_path: Path) -> None:
    arguments = ["train", *MASKED[:-1], *TRAJECTORY, "-q", "-o"]
    recipe = resolve(method="cj-grpo", overrides=[*MASKED[:-1], *TRAJECTORY[2:]])
    api.start(recipe, tmp_path / "whole", quiet=True)
    command = Command(*arguments, str(tmp_path / "run"))
    wait_for(tmp_path / "run", command.over, "checkpoints/step-000002")
    command.kill()
    finish("resume", str(tmp_path / "run"), "-q")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_estimates_and_late_batches_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    """The noise of a batch that waits for its update is in the checkpoint."""
    overrides = [*MASKED, "update.epochs=2", "reference.every=2", "update.staleness=1", "steps=4", "checkpoint.every=2"]
    whole = api.start(resolve(method="diffu-grpo", overrides=overrides), tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "run/checkpoints/step-000004")
    again = api.resume(tmp_path / "run", quiet=True)
    timed = ("time/", "system/", "tokens/per_second")
    rows = [[{k: v for k, v in r.items() if not k.startswith(timed)} for r in m.metrics] for m in (whole, again)]
    assert rows[0] == rows[1]
    assert all(torch.equal(again.policy.state_dict()[k], v) for k, v in whole.policy.state_dict().items())


def test_a_run_can_be_evaluated_and_exported(cli: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    assert cli("train", *MASKED, "-q", "-o", "run").code == 0
    assert "eval/accuracy" in json.loads(cli("eval", "run", "--json").out)
    answer = cli("export", "run", "model")
    assert answer.code == 0 and "AutoModelForMaskedLM.from_pretrained('model')" in answer.out
    model = AutoModelForMaskedLM.from_pretrained("model")
    assert model(torch.tensor([[1, 3, 3]])).logits.isfinite().all()
    again = cli("eval", "model", "--task", "sort", "model.kind=masked_diffusion", "rollout.max_tokens=4", "--json")
    assert 0.0 <= json.loads(again.out)["eval/accuracy"] <= 1.0


def test_tokens_a_forward_pass_are_a_reward() -> None:
    functions = ["exact", "coterie.rewards.speed:speed"]
    recipe = resolve(
        method="lightning-rl", functions=functions,
        overrides=[*MASKED[:-2], "unmask.threshold=0.3", "task.digits=1", "task.train=4", "task.held_out=2"],
    )  # fmt: skip
    run = build(recipe)
    run.metrics = {}
    collect(run, 0, Clock())
    assert run.seen is not None
    found = run.seen.columns["components"]["speed"]  # type: ignore[index]
    torch.testing.assert_close(found, run.seen["lengths"] / run.seen["passes"])
    assert len(found.unique()) > 1


def test_the_demo_is_a_recipe() -> None:
    from coterie.cli.demo import DEMOS, RECIPES

    recipe = resolve(file=RECIPES / DEMOS["masked-diffusion"])
    assert recipe.settings.model["kind"] == "masked_diffusion"
