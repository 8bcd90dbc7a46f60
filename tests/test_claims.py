"""The bench of claims: its statistics, its tabular policy, and that every experiment could run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.claims import Experiment, Side, record, resolved, worlds
from bench.claims.entries import EXPERIMENTS
from bench.claims.tabular import Tabular, bandit, play


def test_interval_is_students() -> None:
    mean, low, high = record.interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446305 * (5 / 3) ** 0.5 / 2  # t(0.975, 3) times the standard error
    assert mean == 2.5 and low == pytest.approx(2.5 - half) and high == pytest.approx(2.5 + half)
    assert record.interval([2.0])[1:] == (float("-inf"), float("inf"))


def experiment(**changes: Any) -> Experiment:
    settings: dict[str, Any] = {
        "slug": "x", "claim": "c", "how": "h", "ours": Side("a", "rloo"), "baseline": Side("b", "grpo"),
        "setting": lambda side, seed: {}, "figure": "f",
    }  # fmt: skip
    return Experiment(**settings | changes)


@pytest.mark.parametrize(
    ("ends", "changes", "want"),
    [
        ((0.1, 0.3), {}, record.SHOWS),
        ((-0.1, 0.3), {}, record.UNDECIDED),
        ((-0.3, -0.1), {}, record.OPPOSITE),
        ((-0.3, -0.1), {"higher": False}, record.SHOWS),
        ((0.1, 0.3), {"higher": False}, record.OPPOSITE),
        ((-0.1, 0.1), {"equal": 0.2}, record.SHOWS),
        ((-0.1, 0.3), {"equal": 0.2}, record.UNDECIDED),
        ((0.1, 0.3), {"equal": 0.2}, record.OPPOSITE),
    ],
)
def test_verdicts(ends: tuple[float, float], changes: dict[str, Any], want: str) -> None:
    assert record.verdict([{"figure": "f", "interval": ends}], experiment(**changes)) == want


@pytest.mark.parametrize(("change", "want"), [(0.1, record.SHOWS), (-0.01, record.SHOWS), (-0.1, record.PARTLY)])
def test_a_claim_that_something_is_kept_shows_in_part_where_it_falls(change: float, want: str) -> None:
    figures = [{"figure": "f", "interval": (0.1, 0.3)}, {"figure": "accuracy", "difference": change}]
    assert record.verdict(figures, experiment(keeps=("accuracy", 0.02))) == want


def test_each_side_takes_the_rate_that_is_best_for_it() -> None:
    def setting(side: Side, seed: int) -> dict[str, float]:
        assert seed >= 1000  # seeds of their own
        rate = float(side.overrides[-1].split("lr: ")[1].rstrip("}"))
        return {"f": -abs(rate - (4 if side.label == "a" else 1))}

    e = experiment(setting=setting, rates=(1.0, 4.0, 16.0))
    assert e.tuned(e.ours)[1] == 4.0 and e.tuned(e.baseline)[1] == 1.0
    worst_first = experiment(setting=setting, rates=(1.0, 4.0, 16.0), higher=False)
    assert worst_first.tuned(e.ours)[1] == 16.0


def test_differences_are_paired_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "CLAIMS", tmp_path)
    ours = record.Played(Side("a", "rloo"), 2.0, [{"f": 1.0}, {"f": 5.0}, {"f": 9.1}])
    baseline = record.Played(Side("b", "grpo"), None, [{"f": 0.0}, {"f": 4.0}, {"f": 8.0}])
    record.record(experiment(), ours, baseline, 1.0)
    written = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert written["verdict"] == record.SHOWS and written["seeds"] == 3 and written["paper"] == "arXiv:2402.14740"
    assert written["figures"][0]["difference"] == pytest.approx(3.1 / 3)
    assert written["command"] == "python -m bench.claims x --seeds 3"


def test_the_tabular_policy_scores_what_it_sampled_and_stops_at_token_0() -> None:
    world = worlds.thinking()(torch.Generator().manual_seed(0))
    policy = Tabular(world)
    rollouts = policy.rollout([0, 3], 50, torch.Generator().manual_seed(1))
    mask, tokens = rollouts["mask"], rollouts["tokens"]
    torch.testing.assert_close(policy.score(rollouts)["logp"].detach(), rollouts["logp_old"].detach())
    assert (mask[:, 1:] <= mask[:, :-1]).all() and ((tokens == 0) & mask).sum(-1).le(1).all()
    assert torch.equal(rollouts["truncated"], mask.all(-1) & (tokens[:, -1] != 0))
    share = (tokens[rollouts["groups"] == 1, 0] == 0).double().mean()
    expected = policy.log_probabilities().detach().exp()[3, 0, 0]
    assert abs(float(share - expected)) < 0.25


def test_grpo_learns_a_bandit_and_the_same_seed_is_the_same_run() -> None:
    setting = bandit(worlds.hard_prompts(arms=4), 40, ["draw.prompts=8", "optimizer={sgd: {lr: 8.0}}"])
    first = setting(Side("GRPO", "grpo"), 0)
    assert first["accuracy"] > 0.6
    assert setting(Side("GRPO", "grpo"), 0) == first != setting(Side("GRPO", "grpo"), 1)


def test_the_reference_of_a_world_is_what_pieces_read() -> None:
    world = worlds.confident_errors()(torch.Generator().manual_seed(0))
    recipe = resolved(Side("kl", "grpo+kl"), 0, ["rollout.max_tokens=1", "optimizer={sgd: {lr: 1.0}}"], task="sort")
    _, history = play(world, recipe, 2)
    assert history[0]["kl/ref"] > 0.1


@pytest.mark.parametrize("e", EXPERIMENTS, ids=lambda e: e.slug)
def test_every_experiment_could_run(e: Experiment) -> None:
    """Its recipes resolve, where its methods are there; and it can be told what it claims."""
    assert e.claim.endswith(".") and e.how.endswith(".") and e.figure not in e.also
    if missing := e.missing():
        pytest.skip(f"there is no method {', '.join(missing)} yet")
    for side in (e.ours, e.baseline):
        resolved(side, 0, [e.rate.format(rate) for rate in e.rates[:1]], task="sort")
    assert e.paper is None or e.paper.startswith("arXiv:")


def test_names_are_unique() -> None:
    assert len({e.slug for e in EXPERIMENTS}) == len(EXPERIMENTS) >= 12
