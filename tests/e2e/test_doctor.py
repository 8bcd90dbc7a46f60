"""`coterie doctor`: what it says of the machine, and its mends as they are typed."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.cli.doctor import EXTRAS

OPTIONAL = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
DISTRIBUTION = {"sklearn": "scikit-learn"}


def test_every_check_passes_here_and_the_sandbox_is_among_them(cli: Callable) -> None:
    answer = cli("doctor", "--json")
    checks = {c["check"]: c for c in json.loads(answer.out)}
    assert answer.code == 0 and checks["python"]["ok"]
    assert checks["sandbox"]["detail"]
    assert sum(name.startswith("sampler = trainer") for name in checks) == 2


def test_a_missing_extra_is_named_as_pip_takes_it(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "ray" else find(name, *a))
    assert "pip install 'coterie[scale]'" in cli("doctor").out


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_extras_are_those_of_the_package(module: str, extra: str) -> None:
    name = DISTRIBUTION.get(module, module)
    assert any(requirement.startswith(name) for requirement in OPTIONAL[extra])
