"""Evaluation statistics against brute force."""

from __future__ import annotations

import time
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.evaluation import avg_at_k, bootstrap_interval, maj_at_k, pass_at_k, summarise

tables = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(tables, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(table, data):
    n = len(table[0])
    k = data.draw(st.integers(1, n))
    subsets = [[any(row[i] for i in chosen) for chosen in combinations(range(n), k)] for row in table]
    assert pass_at_k(table, k) == pytest.approx(np.mean([np.mean(s) for s in subsets]))


def test_pass_at_k_of_many_samples_does_not_overflow():
    row = [True] * 10 + [False] * 1990
    exact = 1.0
    for j in range(1000):  # arXiv 2107.03374, numerically stable form
        exact *= (1990 - j) / (2000 - j)
    assert pass_at_k([row], 1000) == pytest.approx(1 - exact, rel=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_refuses_more_than_there_are(k):
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        pass_at_k([[True, False, True]], k)


@given(tables)
def test_pass_at_1_is_the_average(table):
    assert pass_at_k(table, 1) == pytest.approx(avg_at_k(table))


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=5, max_size=5), min_size=1, max_size=3), st.sampled_from("abc")
)
def test_maj_at_k_is_the_expected_verdict_of_a_majority_answer(answers, right):
    correct = [[a == right for a in row] for row in answers]
    expected = []
    for row in answers:
        top = max(row.count(a) for a in "abc")
        winners = [a for a in "abc" if row.count(a) == top]
        expected.append(sum(a == right for a in winners) / len(winners))
    assert maj_at_k(answers, correct) == pytest.approx(np.mean(expected))


def test_bootstrap_equals_enumerating_every_resample():
    values = [0.0, 0.0, 1.0, 0.5]
    means = sorted(np.mean(draw) for draw in product(values, repeat=4))
    low, high = bootstrap_interval(values, confidence=0.8, resamples=200_000, seed=3)
    assert low == pytest.approx(np.quantile(means, 0.1), abs=0.01)
    assert high == pytest.approx(np.quantile(means, 0.9), abs=0.01)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.random(100) < 0.3, resamples=500, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_bootstrap_is_deterministic_by_seed_and_fast():
    values = np.random.default_rng(1).binomial(8, 0.4, 1319) / 8
    assert (
        bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)
    )
    best = min(_seconds(lambda: bootstrap_interval(values)) for _ in range(5))
    assert best < 0.02


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([1.0] * 7) == (1.0, 1.0)


def test_bootstrap_refuses_nothing():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_summarise():
    correct = np.array([[1, 1, 0], [0, 0, 0]], dtype=bool)
    out = summarise(
        correct,
        [[1, 2, 3], [4, 5, 6]],
        answers=[["a", "a", "b"], ["c", "d", "e"]],
        truncated=[[False, False, True], [False, True, True]],
        ks=(1, 2, 3),
    )
    assert out["eval/accuracy"] == pytest.approx(1 / 3)
    assert out["eval/accuracy_low"] <= out["eval/accuracy"] <= out["eval/accuracy_high"]
    assert (out["eval/accuracy_low"], out["eval/accuracy_high"]) == bootstrap_interval([2 / 3, 0])
    assert (out["eval/pass@2_low"], out["eval/pass@2_high"]) == bootstrap_interval([1, 0])
    assert (out["eval/pass@3_low"], out["eval/pass@3_high"]) == bootstrap_interval([1, 0])
    assert (out["eval/maj@3_low"], out["eval/maj@3_high"]) == bootstrap_interval([1, 0])
    assert (out["eval/length_low"], out["eval/length_high"]) == bootstrap_interval([2, 5])
    assert (out["eval/truncated_share_low"], out["eval/truncated_share_high"]) == bootstrap_interval([1 / 3, 2 / 3])
    assert out["eval/pass@2"] == pytest.approx(0.5)
    assert out["eval/pass@3"] == pytest.approx(0.5)
    assert "eval/pass@1" not in out
    assert out["eval/maj@3"] == pytest.approx(0.5)
    assert out["eval/length"] == 3.5
    assert out["eval/truncated_share"] == 0.5


def test_summarise_of_one_sample_has_no_majority():
    names = ("accuracy", "length")
    assert set(summarise([[True]], [[3]], answers=[["a"]])) == {
        f"eval/{name}{end}" for name in names for end in ("", "_low", "_high")
    }


@pytest.mark.parametrize("bad", [[], [[]], [True, False]])
def test_a_table_must_be_prompts_by_samples(bad):
    with pytest.raises(ValueError, match="prompts, samples"):
        avg_at_k(bad)


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
