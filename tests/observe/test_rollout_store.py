from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch

from coterie.errors import RunError
from coterie.observe import rollout_store
from coterie.rollouts import Prompt, Rollouts

MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)


def table(**extra):
    columns = {
        "groups": torch.tensor([0, 1, 0, 1]),
        "mask": MASK,
        "tokens": torch.tensor([[5, 6, 99], [7, 8, 9], [4, 99, 99], [99, 99, 99]]),
        "lengths": MASK.sum(-1),
        "truncated": torch.tensor([False, True, False, False]),
        "logp_old": torch.full((4, 3), -0.5),
        "rewards": torch.tensor([1.0, 0.0, 0.5, 0.0]),
        **extra,
    }
    return Rollouts([Prompt((1,)), Prompt((2,))], columns, texts=["ab", "cde", "f", ""])


def test_a_row_a_rollout_with_its_prompt_and_place_in_the_group(tmp_path):
    path = tmp_path / "rollouts" / "step-000001.parquet"
    rollout_store.write(path, table(), ["first", "second"])
    rows = rollout_store.read(path)
    assert [(r["group"], r["sample"], r["prompt"], r["completion"]) for r in rows] == [
        (0, 0, "first", "ab"),
        (1, 0, "second", "cde"),
        (0, 1, "first", "f"),
        (1, 1, "second", ""),
    ]
    assert rows[1]["tokens"] == [7, 8, 9]
    assert rows[2]["tokens"] == [4]
    assert rows[0]["logp_old"] == [-0.5, -0.5]
    assert rows[3]["tokens"] == []
    assert [r["reward"] for r in rows] == [1.0, 0.0, 0.5, 0.0]
    assert [r["truncated"] for r in rows] == [False, True, False, False]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_columns_the_table_lacks_are_left_out(tmp_path):
    rollout_store.write(tmp_path / "a", table(), ["x", "y"])
    assert not {"correct", "advantage", "advantages", "weight", "pieces"} & set(rollout_store.read(tmp_path / "a")[0])


def test_components_advantages_and_pieces(tmp_path):
    full = table(
        components={"exact": torch.tensor([1.0, 0.0, 0.5, float("nan")])},
        correct=torch.tensor([True, False, False, False]),
        advantages=torch.tensor([[1.0, 3.0, 99.0], [0.0, 1.0, 2.0], [5.0, 99.0, 99.0], [99.0, 99.0, 99.0]]),
        weights=torch.tensor([1.0, 0.0, 1.0, 1.0]),
    )
    pieces = [["a", "b"], ["c", "d", "e"], ["f"], []]
    rollout_store.write(tmp_path / "a", full, ["x", "y"], token_texts=pieces)
    rows = rollout_store.read(tmp_path / "a")
    assert [r["advantage"] for r in rows] == [2.0, 1.0, 5.0, 0.0]
    assert rows[0]["advantages"] == [1.0, 3.0]
    assert [r["weight"] for r in rows] == [1.0, 0.0, 1.0, 1.0]
    assert [r["pieces"] for r in rows] == pieces
    assert [r["reward.exact"] for r in rows][:3] == [1.0, 0.0, 0.5]
    assert rows[0]["correct"] is True


def test_one_advantage_a_rollout_has_no_list(tmp_path):
    rollout_store.write(tmp_path / "a", table(advantages=torch.tensor([1.0, 2.0, 3.0, 4.0])), ["x", "y"])
    rows = rollout_store.read(tmp_path / "a")
    assert [r["advantage"] for r in rows] == [1.0, 2.0, 3.0, 4.0]
    assert "advantages" not in rows[0]


def test_types_and_compression(tmp_path):
    rollout_store.write(tmp_path / "a", table(), ["x", "y"])
    schema = pq.read_schema(tmp_path / "a")
    assert str(schema.field("tokens").type) == "list<element: int32>"
    assert str(schema.field("logp_old").type) == "list<element: float>"
    assert pq.ParquetFile(tmp_path / "a").metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="could not be written"):
        rollout_store.write(tmp_path / "file" / "a", table(), ["x", "y"])
