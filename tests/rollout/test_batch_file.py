"""A batch as a file: what is read is what was written, to the last bit, and nothing but data is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from coterie.environments.base import Episode
from coterie.errors import RunError
from coterie.rollout.batch_file import read, written
from coterie.rollouts import Prompt, Rollouts, Sampling

ODD = [-math.inf, math.nan, 5e-324, 1 / 3, -0.0, 3.4e38]


def table(rows: int, width: int, **infos: object) -> Rollouts:
    values = torch.tensor(ODD, dtype=torch.float32).repeat(rows * width)[: rows * width].view(rows, width)
    columns = {
        "groups": torch.arange(rows) % 2,
        "mask": values > 0,
        "logp_old": values,
        "turn": torch.full((rows, width), -1),
        "step_rewards": torch.rand(rows, 2, generator=torch.Generator().manual_seed(1)),
    }
    episodes = [
        Episode([0.1, 1 / 3], ["a", "ü"], ["b", {"role": "tool", "content": "c"}], ["s", "t"], [dict(infos), {}], True)
        for _ in range(rows)
    ]
    prompts = [Prompt((1, 2, 3), {"prompt": "not given"}, 7), Prompt((4,), {}, 2)]
    spec = Sampling(0.7, max_tokens=9, stop=("x",))
    return Rollouts(prompts, dict(columns), spec, [f"text {i}\n" for i in range(rows)], episodes=episodes)


def test_every_bit_comes_back() -> None:
    tables = {"main": table(5, 6), "left": table(3, 2)}
    about, found = read(written(tables, {"step": 3}), ["main", "left", "nobody"])
    assert about["step"] == 3 and found.keys() == tables.keys()
    for name, want in tables.items():
        got = found[name]
        assert got.columns.keys() == want.columns.keys()
        for column in want.columns:
            assert got[column].dtype == want[column].dtype and got[column].shape == want[column].shape
            assert got[column].numpy().tobytes() == want[column].numpy().tobytes()
        assert got.texts == want.texts and got.episodes == want.episodes and got.sampling == want.sampling
        assert [(p.tokens, p.index, p.row) for p in got.prompts] == [((1, 2, 3), 7, {}), ((4,), 2, {})]
    assert read(written(tables, {}), ["left"])[1].keys() == {"left"}
    assert read(written({}, {"step": 4}), ["left"]) == ({"step": 4, "agents": {}}, {})


def test_numbers_of_numpy_are_plain_and_what_is_not_is_refused() -> None:
    _, found = read(written({"a": table(1, 1, x=np.float64(1 / 3), y=np.arange(2))}, {}), ["a"])
    assert found["a"].episodes[0].infos[0] == {"x": 1 / 3, "y": [0, 1]}
    with pytest.raises(RunError, match="tells something of type object"):
        written({"a": table(1, 1, x=object())}, {})
