"""What the objective pieces report about themselves, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.metrics import Collector, collect
from coterie.objectives import losses, terms, trust_regions

# Five decisions: too high and good, too high and bad, too low and bad, two in between; then padding.
RATIO = torch.tensor([[1.5, 1.5, 0.5, 1.1, 1.0, 9.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.0, -1.0, -2.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
MASK = torch.tensor([[True] * 5 + [False]])


def reported(call: Any) -> dict[str, float]:
    collector = Collector()
    with collect(collector, MASK):
        call()
    return collector.means()


def test_ppo_clip_counts_decisions_whose_gradient_was_cut() -> None:
    got = reported(lambda: trust_regions.ppo_clip(RATIO, ADVANTAGES))
    assert got == {
        "clip/fraction": pytest.approx(0.4),
        "clip/low_fraction": pytest.approx(0.2),
        "clip/high_fraction": pytest.approx(0.2),
    }


def test_ppo_clip_with_a_wide_upper_bound() -> None:
    got = reported(lambda: trust_regions.ppo_clip(RATIO, ADVANTAGES, eps_low=0.2, eps_high=0.6))
    assert (got["clip/low_fraction"], got["clip/high_fraction"]) == (pytest.approx(0.2), 0.0)


def test_cispo_counts_weights_that_were_bounded() -> None:
    got = reported(lambda: trust_regions.cispo(RATIO, ADVANTAGES, RATIO.log(), MASK, max_ratio=1.2, min_ratio=0.6))
    assert got == {"clip/fraction": pytest.approx(0.6)}


@pytest.mark.parametrize(("clip", "fraction"), [("none", 0.0), ("one_side", 0.4), ("two_side", 0.6)])
def test_reinforce_counts_decisions_left_out(clip: Any, fraction: float) -> None:
    got = reported(lambda: losses.reinforce(RATIO.log(), RATIO * 0, ADVANTAGES, MASK, clip=clip))
    assert got == {"clip/fraction": pytest.approx(fraction)}


def test_kl_reports_the_estimate_before_coefficient_and_ratio() -> None:
    logp, ref = torch.full((1, 6), -1.0), torch.full((1, 6), -1.5)
    got = reported(lambda: terms.kl(logp, ref, logp - 3, MASK, coef=0.1, estimator="k1", importance=True))
    assert got == {"kl/ref": pytest.approx(0.5)}
