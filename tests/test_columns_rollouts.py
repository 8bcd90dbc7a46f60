from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.group_norm import std

from coterie.columns import COLUMNS, check, finite_or_zero, per_decision
from coterie.errors import ShapeError
from coterie.metrics import Collector, collect, record
from coterie.reductions import group_std, masked_mean, masked_sum
from coterie.rollouts import Prompt, Rollouts, Sampling


class TestVocabulary:
    def test_every_column_is_described(self) -> None:
        for name, column in COLUMNS.items():
            assert column.name == name and column.provider and len(column.meaning) > 5
            assert column.dtype in ("int", "float", "bool") and column.shapes
        assert COLUMNS["advantages"].shape_text == "[B] or [B,T]"

    def test_sizes_are_bound_across_columns(self) -> None:
        dims: dict[str, int] = {}
        check("mask", torch.ones(3, 5), dims)
        assert dims == {"B": 3, "T": 5}
        check("advantages", torch.ones(3), dims)
        check("advantages", torch.ones(3, 5), dims)
        for bad in (torch.ones(3, 4), torch.ones(5), torch.ones(3, 1), torch.ones(3, 5, 1), torch.tensor(1.0)):
            with pytest.raises(ShapeError, match=r"'advantages'.*\[B=3\] or \[B=3,T=5\]"):
                check("advantages", bad, dims)

    def test_components_are_a_dict_and_nothing_else_is(self) -> None:
        dims: dict[str, int] = {"B": 2}
        check("components", {"a": torch.ones(2)}, dims)
        with pytest.raises(ShapeError, match=r"components\['b'\]"):
            check("components", {"a": torch.ones(2), "b": torch.ones(2, 1)}, dims)
        with pytest.raises(ShapeError, match="components"):
            check("components", torch.ones(2), dims)
        with pytest.raises(ShapeError, match="rewards"):
            check("rewards", {"a": torch.ones(2)}, dims)

    def test_scalars_pass(self) -> None:
        check("step", 3, {})

    def test_per_decision_and_finite_or_zero(self) -> None:
        mask = torch.tensor([[True, False], [True, True]])
        assert per_decision(torch.tensor([1.0, 2.0]), mask).tolist() == [[1, 1], [2, 2]]
        wide = torch.rand(2, 2)
        assert per_decision(wide, mask) is wide
        bad = torch.tensor([[1.0, float("nan")], [2.0, 3.0]], requires_grad=True)
        out = finite_or_zero(bad, mask)
        assert out.tolist() == [[1, 0], [2, 3]]
        out.sum().backward()
        assert bad.grad.tolist() == [[1, 0], [1, 1]]


class TestReductions:
    @given(st.lists(st.tuples(st.integers(-2, 2), st.floats(-3, 3)), min_size=1), st.sampled_from([0, 1]))
    def test_group_std(self, rows: list[tuple[int, float]], ddof: int) -> None:
        got = group_std(
            torch.tensor([x for _, x in rows], dtype=torch.float64), torch.tensor([g for g, _ in rows]), ddof
        )
        want = [std([x for h, x in rows if h == g], ddof) for g, _ in rows]
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), atol=1e-9, rtol=1e-9)

    def test_masked(self) -> None:
        x = torch.tensor([[1.0, 3.0, float("nan")], [float("inf"), 5.0, 7.0]])
        mask = torch.tensor([[True, True, False], [False, False, False]])
        assert masked_sum(x, mask).tolist() == [4, 0] and masked_mean(x, mask).tolist() == [2, 0]


class TestMetrics:
    def test_outside_a_loop_it_does_nothing(self) -> None:
        record("clip/fraction", torch.ones(2))

    def test_means_are_the_same_however_they_are_cut(self) -> None:
        value, mask = torch.arange(12.0).view(4, 3), torch.arange(12).view(4, 3) % 5 != 0
        whole, cut = Collector(), Collector()
        with collect(whole, mask):
            record("m", value)
        for rows in ([0], [1, 2, 3]):
            with collect(cut, mask[rows]):
                record("m", value[rows])
        assert cut.means() == whole.means() == {"m": pytest.approx(float(value[mask].mean()))}

    def test_rollout_values_count_rollouts_that_have_a_decision(self) -> None:
        c = Collector()
        with collect(c, torch.tensor([[True, True], [False, False], [True, False]])):
            record("r", torch.tensor([1.0, 100.0, 3.0]))
            record("plain", 7.0)
        assert c.means() == {"r": 2.0, "plain": 7.0}

    def test_an_explicit_mask_peaks_and_nesting(self) -> None:
        c, inner = Collector(), Collector()
        with collect(c, torch.ones(1, 2, dtype=torch.bool)):
            with collect(inner):
                record("x", torch.tensor([[5.0, 6.0]]))
            record("x", torch.tensor([[1.0, 9.0]]), torch.tensor([[True, False]]))
        for value in (-3.0, -1.0, -2.0):
            c.peak("p", value)
        assert c.means() == {"x": 1.0, "p": -1.0} and inner.means() == {"x": 5.5}

    def test_an_empty_mask_gives_no_metric(self) -> None:
        c = Collector()
        with collect(c, torch.zeros(1, 2, dtype=torch.bool)):
            record("x", torch.ones(1, 2))
        assert c.means() == {}


def rollouts(lengths: list[int], groups: list[int], width: int, **extra: Any) -> Rollouts:
    n = torch.tensor(lengths)
    mask = torch.arange(width) < n.unsqueeze(-1)
    columns = {
        "groups": torch.tensor(groups),
        "mask": mask,
        "lengths": n,
        "rewards": torch.arange(float(len(lengths))),
        "tokens": (torch.arange(width) + 10 * torch.arange(len(lengths)).unsqueeze(-1)) * mask,
        "logp_old": -torch.ones(len(lengths), width) * mask,
        "components": {"a": torch.arange(float(len(lengths)))},
    }
    prompts = [Prompt((i, i + 1)) for i in range(max(groups) + 1)]
    return Rollouts(prompts, columns | extra, Sampling(), [f"text {i}" for i in range(len(lengths))])


class TestRollouts:
    def test_shapes_are_checked_when_made_and_when_changed(self) -> None:
        table = rollouts([2, 3], [0, 1], 4)
        assert len(table) == 2 and "mask" in table and "logp" not in table
        with pytest.raises(ShapeError, match=r"'advantages' has shape \[2, 1\]"):
            table.with_columns(advantages=torch.ones(2, 1))
        with pytest.raises(ShapeError, match="2 rows and 1 texts"):
            Rollouts(table.prompts, table.columns, texts=["one"])

    def test_with_columns_leaves_the_old_table_alone(self) -> None:
        table = rollouts([2, 3], [0, 1], 4)
        new = table.with_columns(rewards=torch.ones(2), advantages=torch.zeros(2))
        assert table["rewards"].tolist() == [0, 1] and "advantages" not in table
        assert new["rewards"].tolist() == [1, 1] and new.texts == table.texts

    @pytest.mark.parametrize("index", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
    def test_rows_trims_to_the_longest_that_remains(self, index: torch.Tensor) -> None:
        table = rollouts([1, 4, 2], [0, 0, 1], 5, weights=torch.ones(3), advantages=torch.ones(3, 5))
        part, order = table.rows(index), [2, 0] if index.dtype == torch.long else [0, 2]
        assert part["lengths"].tolist() == [[1, 4, 2][i] for i in order]
        assert part["mask"].shape == part["tokens"].shape == part["advantages"].shape == (2, 2)
        assert part["weights"].shape == (2,) and part.texts == [f"text {i}" for i in order]
        assert part.columns["components"]["a"].tolist() == order  # type: ignore[index]
        assert part.prompts == table.prompts

    def test_rows_of_nothing_and_of_empty_rollouts(self) -> None:
        table = rollouts([0, 3], [0, 0], 4)
        assert len(table.rows(torch.tensor([], dtype=torch.long))) == 0
        assert table.rows(torch.tensor([0]))["mask"].shape == (1, 1)

    def test_concat_renumbers_groups_and_pads(self) -> None:
        a, b = rollouts([2, 1], [0, 1], 2), rollouts([3, 1, 2], [0, 2, 2], 3)
        both = Rollouts.concat([a, b])
        assert both["groups"].tolist() == [0, 1, 2, 4, 4] and len(both.prompts) == 5
        assert both["mask"].tolist()[0] == [True, True, False] and both["lengths"].tolist() == [2, 1, 3, 1, 2]
        assert both["tokens"][3].tolist() == [10, 0, 0] and both.texts == a.texts + b.texts
        assert both.columns["components"]["a"].tolist() == [0, 1, 0, 1, 2]  # type: ignore[index]
        assert Rollouts.concat([a]) is a

    def test_concat_pads_turns_with_minus_1(self) -> None:
        a = rollouts([1], [0], 1, turn=torch.tensor([[0]]))
        b = rollouts([2], [0], 2, turn=torch.tensor([[0, 1]]))
        assert Rollouts.concat([a, b])["turn"].tolist() == [[0, -1], [0, 1]]

    def test_rows_of_a_concat_give_the_parts_back(self) -> None:
        a, b = rollouts([2, 1], [0, 1], 2), rollouts([3, 1], [0, 1], 3)
        back = Rollouts.concat([a, b]).rows(torch.tensor([0, 1]))
        for name in ("mask", "tokens", "lengths", "rewards", "logp_old", "groups"):
            assert torch.equal(back[name], a[name])

    def test_truncates(self) -> None:
        assert not Sampling().truncates
        assert Sampling(top_p=0.9).truncates and Sampling(top_k=5).truncates and Sampling(min_p=0.1).truncates
