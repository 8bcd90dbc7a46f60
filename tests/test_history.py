"""How far the policy has moved since a prompt's last visit, and what is kept to say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect
from coterie.history import History
from coterie.loop import credit, select
from coterie.provide import provide
from coterie.recipe import resolve
from coterie.rollouts import Prompt, Rollouts
from coterie.run import Run
from coterie.update import update
from tests.e2e.conftest import TINY

SPO = ["task.train=4", "task.dense=true", "optimizer.lr=1e-2"]


def table(logp: list[list[float]], prompts: list[int], each: int = 1) -> Rollouts:
    """`each` rollouts of every prompt, all decisions taken but those of log-prob 0."""
    logp_old = torch.tensor(logp)
    columns = {"logp_old": logp_old, "mask": logp_old != 0, "tokens": torch.ones_like(logp_old).long()}
    columns["groups"] = torch.arange(len(prompts)).repeat_interleave(each)
    return Rollouts([Prompt((1, 2), index=p) for p in prompts], columns)


def shifted(by: float):
    return lambda past: past["logp_old"] + by * past["mask"]


def test_it_is_the_mean_absolute_change_on_the_rollout_that_is_kept() -> None:
    history = History()
    batch = table([[-1.0, -2.0, 0.0], [-3.0, -4.0, -5.0]], [7, 8])
    assert history.drift(batch, shifted(9.0)).tolist() == [0.0, 0.0]
    history.remember(batch)
    later = table([[-1.0], [-1.0], [-1.0]], [8, 9, 7])
    score = lambda past: past["logp_old"] + torch.tensor([[0.1, -0.5, 0.3], [0.25, -0.75, 99.0]])  # noqa: E731
    torch.testing.assert_close(history.drift(later, score), torch.tensor([0.3, 0.0, 0.5]))


def test_one_rollout_of_a_group_is_kept_and_all_of_them_get_its_drift() -> None:
    history = History()
    history.remember(table([[-1.0, -2.0], [-3.0, 0.0], [-5.0, 0.0], [-7.0, 0.0]], [3, -1], each=2))
    assert list(history.last) == [3] and history.last[3]["logp_old"].tolist() == [-1.0, -2.0]
    assert history.drift(table([[-1.0]] * 4, [3, -1], each=2), shifted(-0.5)).tolist() == [0.5, 0.5, 0.0, 0.0]


def test_it_is_bounded_and_the_oldest_go() -> None:
    history = History(limit=3)
    history.remember(table([[-1.0]] * 3, [1, 2, 3]))
    history.remember(table([[-2.0]] * 2, [1, 4]))
    assert list(history.last) == [3, 1, 4] and history.last[1]["logp_old"].tolist() == [-2.0]


def test_each_rollout_is_scored_as_it_was_sampled() -> None:
    history, seen = History(), []
    for prompt, temperature in ((0, 1.0), (1, 0.5)):
        batch = table([[-1.0]], [prompt])
        history.remember(replace(batch, sampling=replace(batch.sampling, temperature=temperature)))

    def score(past: Rollouts) -> torch.Tensor:
        seen.append(past.sampling.temperature)
        return past["logp_old"] - past.sampling.temperature

    assert history.drift(table([[-1.0]] * 2, [0, 1]), score).tolist() == [1.0, 0.5] and sorted(seen) == [0.5, 1.0]


def made(*overrides: str, method: str = "spo-single", checkpoint: Path | None = None) -> Run:
    run = build(resolve(method=method, overrides=[*TINY, *SPO, *overrides]), checkpoint)
    run.metrics = {}
    return run


def step(run: Run, number: int) -> Rollouts:
    batch = collect(run, number, Clock())
    assert batch is not None
    batch = select(run, credit(run, batch, number, Clock()), number, Clock())
    update(run, batch, number, Clock())
    return batch


def test_in_a_run_it_is_measured_with_the_policy(tmp_path: Path) -> None:
    run = made()
    first = step(run, 0)
    assert (first["drift"] == 0).all()
    kept = {p: dict(entry) for p, entry in run.history.last.items()}
    second = step(run, 1)
    assert (second["drift"] > 1e-4).all()
    for group, prompt in enumerate(second.prompts):  # as it was before the second update, on the first step's rollout
        assert kept[prompt.index]["logp_old"].tolist() == pytest.approx(
            first["logp_old"][first["prompt_index"] == prompt.index][0].tolist()
        )
        assert len(second["drift"][second["groups"] == group].unique()) == 1
    run.save(tmp_path / "checkpoint")
    again = made(checkpoint=tmp_path / "checkpoint")
    drifts = [
        provide(r, r_batch, "credit", 2, Clock())["drift"] for r in (run, again) if (r_batch := collect(r, 2, Clock()))
    ]
    assert torch.equal(*drifts) and (drifts[0] > 0).all()


def test_nothing_is_kept_where_nobody_asks() -> None:
    run = made(method="grpo")
    assert "drift" not in step(run, 0) and not run.history.last
