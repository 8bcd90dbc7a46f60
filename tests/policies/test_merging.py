"""Merging saved models: the weights are the oracle's, and models that do not match are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import bai_merge
from typer.testing import CliRunner

from coterie.cli.app import app
from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.merging import merge
from coterie.policies.tiny import TinySpec


def load(name: Path | str) -> CausalLM:
    return CausalLM.load(ModelSpec(name=str(name), dtype="auto", device="cpu"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """saved(seed, …) -> the folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("models")

    def save(seed: int, vocabulary: str = "abc", width: int = 8, dtype: str = "float32", constant: float | None = None):
        path = folder / f"{seed}-{vocabulary}-{width}-{dtype}-{constant}"
        if not path.exists():
            spec = TinySpec(width=width, layers=1, heads=2, vocabulary=vocabulary)
            policy = CausalLM.load(ModelSpec(init=spec, seed=seed, dtype=dtype))
            if constant is not None:
                for p in policy.trainable_parameters():
                    p.data.fill_(constant)
            policy.save(path)
        return str(path)

    return save


@pytest.mark.oracle("bai-merge")
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.floats(0, 1), second=st.floats(0, 1))
def test_every_weight_is_the_oracles(saved, tmp_path: Path, first: float, second: float) -> None:
    names = [saved(seed) for seed in range(3)]
    count = merge(names, [first, second], tmp_path / "out")
    models = [load(name).state_dict() for name in names]
    out = load(tmp_path / "out").state_dict()
    assert count == sum(p.numel() for p in out.values())
    for name, got in out.items():
        want = bai_merge.balanced(*(m[name].double().flatten().tolist() for m in models), first, second)
        torch.testing.assert_close(got.flatten().double(), torch.tensor(want).double(), rtol=1e-6, atol=1e-7)


@pytest.mark.oracle("bai-merge")
def test_the_example(saved, tmp_path: Path) -> None:
    """1, 0 and -1 with .5 and .8 are .2."""
    merge([saved(0, constant=c) for c in (1.0, 0.0, -1.0)], [0.5, 0.8], tmp_path / "out")
    for p in load(tmp_path / "out").trainable_parameters():
        torch.testing.assert_close(p, torch.full_like(p, 0.2))
    assert bai_merge.balanced([1.0], [0.0], [-1.0], 0.5, 0.8) == pytest.approx([0.2])


@pytest.mark.reduction("bai-merge")
@pytest.mark.parametrize(("ratios", "kept"), [([1.0, 1.0], 0), ([0.0, 1.0], 1), ([0.5, 0.0], 2)])
def test_ratios_of_0_and_1_give_one_of_the_models_back(saved, tmp_path: Path, ratios: list[float], kept: int) -> None:
    names = [saved(seed, dtype="bfloat16") for seed in range(3)]
    merge(names, ratios, tmp_path / "out")
    want = load(names[kept]).state_dict()
    got = load(tmp_path / "out").state_dict()
    assert all(got[n].dtype == torch.bfloat16 and torch.equal(got[n], w) for n, w in want.items())


def test_adapters_are_folded_in(saved, tmp_path: Path) -> None:
    tuned = CausalLM.load(ModelSpec(name=saved(0), lora=LoraSpec(r=2)))
    for p in tuned.trainable_parameters():
        p.data.add_(0.1)
    tuned.save(tmp_path / "adapters")
    tuned.save(tmp_path / "plain", merge=True)
    merge([str(tmp_path / "adapters"), saved(1)], [0.5], tmp_path / "one")
    merge([str(tmp_path / "plain"), saved(1)], [0.5], tmp_path / "other")
    one, other = (load(tmp_path / n).state_dict() for n in ("one", "other"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name])


def test_what_does_not_match_is_refused_and_nothing_is_written(saved, tmp_path: Path) -> None:
    cases = [
        (([saved(0), saved(1, width=16)], [0.5]), "differ in name or shape"),
        (([saved(0), saved(1, vocabulary="cab")], [0.5]), "tokenizer is not that of"),
        (([saved(0), saved(1)], [1.5]), "not in 0..1"),
        (([saved(0), saved(1)], []), "2 models take 1 ratios, got 0"),
        (([saved(0)], []), "1 models take 1 ratios"),
        (([saved(0), str(tmp_path / "none")], [0.5]), "no such folder"),
    ]
    for (names, ratios), words in cases:
        with pytest.raises(PolicyError, match=words):
            merge(names, ratios, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(saved, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["merge", saved(0), saved(1), saved(2), "--ratio", "0.5", "--ratio", "0.8", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "merged" in result.output
    merge([saved(0), saved(1), saved(2)], [0.5, 0.8], tmp_path / "same")
    got, want = load(out).state_dict(), load(tmp_path / "same").state_dict()
    assert all(torch.equal(got[n], w) for n, w in want.items())
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code != 0 and "not empty" in str(again.exception)
