from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.spo import Tree, chain, cutpoints, edges, segment_value, value

from coterie.credit import edge_value, group_norm
from coterie.credit import segment_value as segment_value_piece
from coterie.metrics import Collector, collect
from coterie.objectives.aggregations import token as token_mean
from coterie.selection import drop_certain, drop_forks, drop_idle, drop_shared


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


# The chain.


@pytest.mark.oracle("spo-chain")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_segments_against_the_oracle(kind: str) -> None:
    for seed in range(4):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n)
        columns = ("rewards", "parent", "branch", "mask")
        near(segment_value_piece(*(t[c] for c in columns)), segment_value(*(n[c] for c in columns)))


def probed(n: int, cuts: list[int], values: list[list[float]], score: float) -> dict[str, torch.Tensor]:
    """A rollout of n decisions, and probes of given rewards from its cuts (decisions, not states)."""
    branch = [-1, *(c for c, v in zip(cuts, values, strict=True) for _ in v)]
    rewards = [score, *(r for v in values for r in v)]
    return {
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "parent": torch.zeros(len(rewards), dtype=torch.long),
        "branch": torch.tensor(branch),
        "mask": torch.ones(len(rewards), n, dtype=torch.bool),
    }


@pytest.mark.oracle("spo-chain")
def test_numbers_of_the_source_for_a_chain() -> None:
    p = [0.5, 0.95, 0.8, 0.99, 0.7, 0.6]
    cuts, values = cutpoints(p, interval=1), [0.5, 0.4, 0.8, 0.9]
    assert cuts == [-1, 1, 3, 4]
    want = [-0.1, 0.0, 0.4, 0.0, 0.1, 0.1]  # the second decision belongs to the first segment
    want[1], want[3] = want[0], want[2]
    assert chain(6, cuts, values, 1.0) == pytest.approx(want)
    got = segment_value_piece(**probed(6, [c + 1 for c in cuts], [[v] for v in values], 1.0))
    near(got[0], want)
    assert (got[1:] == 0).all(), "probes are not credited"
    open_ = drop_certain(
        torch.tensor([p], dtype=torch.float64).log(), torch.ones(1, 6, dtype=torch.bool), torch.ones(1)
    )
    assert open_.tolist() == [[1, 0, 1, 0, 1, 1]]
    near(got[0] * open_[0], [-0.1, 0, 0.4, 0, 0.1, 0.1])


def test_before_the_first_cut_there_is_nothing() -> None:
    near(segment_value_piece(**probed(4, [2], [[1.0, 0.0]], 1.0))[0], [0, 0, 0.5, 0.5])
    assert (segment_value_piece(**probed(4, [], [], 1.0)) == 0).all()


def test_values_that_are_equal_are_exactly_so() -> None:
    t = probed(5, [0, 2], [[0.1] * 3, [0.1] * 7], 0.1)
    t["rewards"] = t["rewards"].float()
    assert (segment_value_piece(**t) == 0).all()


@pytest.mark.reduction("spo-chain")
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1), st.integers(1, 6))
def test_one_cut_at_the_prompt_is_the_score_over_its_probes(probes: list[float], score: float, n: int) -> None:
    """REINFORCE with the mean of independent completions as baseline, on all decisions with a threshold above 1."""
    t = probed(n, [0], [probes], score)
    near(segment_value_piece(**t)[0], [score - sum(probes) / len(probes)] * n, 1e-9)
    weights = drop_certain(torch.zeros(len(t["rewards"]), n), t["mask"], torch.ones(len(t["rewards"])), threshold=1.01)
    assert (weights == 1).all()


@pytest.mark.reduction("spo-chain")
@given(st.integers(0, 10**6))
def test_segments_add_up_to_the_score_over_the_first_value(seed: int) -> None:
    draw = np.random.default_rng(seed)
    cuts = sorted(draw.choice(8, 3, replace=False).tolist())
    values = draw.random((3, 2))
    a = segment_value_piece(**probed(8, cuts, values.tolist(), 0.7))[0]
    ends = [*cuts[1:], 8]
    assert sum(float(a[end - 1]) for end in ends) == pytest.approx(0.7 - values[0].mean())


@pytest.mark.oracle("spo-chain")
def test_the_mean_is_over_the_uncertain_decisions_of_rollouts_alone() -> None:
    """What the update makes of weights: probes and certain decisions are neither in the sum nor in the count."""
    n = inputs.table("random", 3)
    t = inputs.tensors(n)
    w = drop_certain(t["logp_old"], t["mask"], drop_forks(t["branch"], torch.ones(len(n["mask"]), dtype=torch.float64)))
    want = np.zeros(n["mask"].shape)
    for i, s in zip(*np.nonzero(n["mask"]), strict=True):
        want[i, s] = float(n["branch"][i] < 0 and np.exp(n["logp_old"][i, s]) < 0.9)
    near(w, want)
    near(token_mean(w, t["mask"], t["groups"]), want / want.sum())


# The tree.


def grown(tree: Tree) -> dict[str, torch.Tensor]:
    """A tree's leaves as rollouts: segments of two decisions, nodes numbered as they come."""
    leaves: list[tuple[float, list[tuple[int, ...]]]] = []

    def walk(node: Tree, path: tuple[int, ...]) -> None:
        if isinstance(node, list):
            for k, child in enumerate(node):
                walk(child, (*path, k))
        else:
            leaves.append((node, [path[:d] for d in range(len(path))]))

    walk(tree, ())
    depth = max(len(nodes) for _, nodes in leaves)
    names = {node: i for i, node in enumerate(dict.fromkeys(n for _, nodes in leaves for n in nodes))}
    turn = torch.tensor([[u if u < len(nodes) else -1 for u in range(depth) for _ in "ab"] for _, nodes in leaves])
    return {
        "rewards": torch.tensor([r for r, _ in leaves], dtype=torch.float64),
        "groups": torch.zeros(len(leaves), dtype=torch.long),
        "turn": turn,
        "state_key": torch.tensor([[names[n] for n in nodes] + [0] * (depth - len(nodes)) for _, nodes in leaves]),
        "mask": turn >= 0,
    }


def wanted(tree: Tree, scale: str = "none") -> np.ndarray:
    rows = edges(tree, scale)
    depth = max(map(len, rows))
    return np.array([[a for u in range(depth) for a in [r[u] if u < len(r) else 0.0] * 2] for r in rows])


trees = st.recursive(
    st.sampled_from([0.0, 1.0, 0.3]), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=12
).filter(lambda t: isinstance(t, list))


@pytest.mark.oracle("spo-tree")
@given(trees, st.sampled_from(["none", "std"]))
def test_edges_against_the_oracle(tree: Tree, scale: Any) -> None:
    near(edge_value(**grown(tree), scale=scale), wanted(tree, scale), 1e-6 if scale == "std" else 1e-12)


@pytest.mark.oracle("spo-tree")
def test_numbers_of_the_source_for_a_tree() -> None:
    tree: Tree = [[1.0, 0.0, [1.0, 1.0]], [0.0, 0.0]]
    assert value(tree) == pytest.approx(1 / 3) and value(tree[0]) == pytest.approx(2 / 3)
    a = edge_value(**grown(tree))
    near(a[:, 0], [1 / 3] * 4 + [-1 / 3] * 2)
    near(a[:, 2], [1 / 3, -2 / 3, 1 / 3, 1 / 3, 0, 0])
    assert (a[2:, 4:] == 0).all(), "an edge to siblings of equal value is worth exactly nothing"


def test_trees_of_two_prompts_do_not_meet() -> None:
    one, two = grown([[1.0, 0.0], 0.0]), grown([[0.0, 0.0], 1.0])
    both = {c: torch.cat([one[c], two[c]]) for c in one}
    both["groups"] = torch.tensor([5] * 3 + [2] * 3)
    near(edge_value(**both), np.concatenate([wanted([[1.0, 0.0], 0.0]), wanted([[0.0, 0.0], 1.0])]))


def test_equal_siblings_in_single_precision_are_worth_exactly_nothing() -> None:
    t = grown([[0.1, 0.1, 0.1], [0.1, [0.1] * 7], 0.1])
    t["rewards"] = t["rewards"].float()
    for scale in ("none", "std"):
        assert (edge_value(**t, scale=scale) == 0).all()


@pytest.mark.reduction("spo-tree")
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_a_tree_of_leaves_is_grpo(rewards: list[float]) -> None:
    t = grown(list(rewards))
    flat = group_norm(t["rewards"], t["groups"], scale="none")
    near(edge_value(**t)[:, 0], flat.numpy(), 1e-9)
    scaled = group_norm(t["rewards"], t["groups"], ddof=0, eps=1e-8)
    near(edge_value(**t, scale="std")[:, 0], scaled.numpy(), 1e-6)


@pytest.mark.reduction("spo-tree")
def test_every_edge_is_learned_from_once() -> None:
    """Without forks all decisions stay; with them a decision that several leaves share stays in one."""
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert (drop_shared(torch.full((3,), -1), mask, torch.ones(3)) == 1).all()
    assert drop_shared(torch.tensor([-1, 2, 3]), mask, torch.ones(3)).tolist() == [[1] * 4, [0, 0, 1, 1], [0, 0, 0, 1]]
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert drop_idle(a, torch.ones(2, 2, dtype=torch.bool), torch.ones(2)).tolist() == [[1, 0], [0, 0]]
    assert drop_idle(a[:, 0], torch.ones(2, 2, dtype=torch.bool), torch.ones(2)).tolist() == [[1, 1], [0, 0]]


def test_what_they_record() -> None:
    with collect(seen := Collector()):
        segment_value_piece(**probed(4, [0, 2], [[1.0], [0.0]], 1.0))
        drop_forks(torch.tensor([-1, 0, 2, -1]), torch.ones(4))
        drop_certain(torch.tensor([[0.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
        edge_value(**grown([[1.0, 0.0], [0.0, 0.0]]))
        drop_idle(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
    means = seen.means()
    assert means["segments/count"] == 2 and means["weights/fork_share"] == 0.5
    assert means["weights/uncertain_share"] == means["weights/idle_share"] == 0.5
    assert means["tree/edge_gain"] == pytest.approx((2 * 0.25 + 2 * 0.5) / 6)
