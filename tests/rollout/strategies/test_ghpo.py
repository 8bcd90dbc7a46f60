"""Hints for prompts that nobody solved (GHPO)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.ghpo import hint, share_of

from coterie.build import build
from coterie.credit import group_norm
from coterie.errors import RecipeError
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from coterie.rollout.strategies.hinted import begin, hinted
from coterie.rollouts import Sampling
from coterie.run import Run
from tests.e2e.conftest import TINY

SHARES = (0.25, 0.5, 0.75)
SEEDS = [[10 * g + k for k in range(4)] for g in range(3)]
SPEC = Sampling(max_tokens=4)
SOLUTION = "01230123"


@pytest.fixture(scope="module")
def run() -> Run:
    return build(
        resolve(method="ghpo", overrides=[*TINY, "model={init: {layers: 1, width: 16, heads: 2, context: 48}}"])
    )


def roll(run: Run, verdicts: Any, step: int = 0, **settings: Any) -> Any:
    """Three groups of four; `verdicts[g][k]` are those of group g with its k-th hint."""
    prompts = [run.prompt(i) for i in range(3)]
    asked = {p.index: 0 for p in prompts}

    def verify(text: str, row: Any) -> bool:
        g = next(i for i, p in enumerate(prompts) if p.row is row)
        tries, place = divmod(asked[g], 4)
        asked[g] += 4 - place if verdicts[g][tries][place] else 1  # the first right one ends the asking
        return verdicts[g][tries][place]

    with collect(seen := Collector()):
        made = hinted(run.policy, prompts, SEEDS, SPEC, True, step, lambda row: SOLUTION, verify, cue=">", **settings)
    return prompts, made, seen.means()


@pytest.mark.oracle("ghpo")
@pytest.mark.parametrize("seed", range(4))
def test_each_group_gets_the_hint_it_needs(run: Run, seed: int) -> None:
    draw = np.random.default_rng(seed)
    verdicts = (draw.random((3, 4, 4)) < 0.12).tolist()
    verdicts[1][0] = [False] * 4
    prompts, made, seen = roll(run, verdicts)
    shares = [share_of(v, SHARES) for v in verdicts]
    for prompt, own, share in zip(prompts, made.prompts, shares, strict=True):
        more = ">" + hint(SOLUTION, share) if share else ""
        assert own.tokens == run.policy.encode(prompt.row["prompt"] + more)
        assert own.row is prompt.row and own.index == prompt.index
    assert made["groups"].tolist() == [g for g in range(3) for _ in range(4)]
    assert seen["hint/share"] == pytest.approx(sum(shares) / 3)
    assert seen["hint/failed_share"] == pytest.approx(sum(not any(v[0]) for v in verdicts) / 3)
    assert seen["hint/unsolved_share"] == pytest.approx(sum(not any(map(any, v)) for v in verdicts) / 3)
    with torch.no_grad():  # on policy, with the hint in context
        scored = run.policy.score(made, {"logp", "entropy"})
    for name, column in (("logp", "logp_old"), ("entropy", "entropy_old")):
        assert torch.allclose(scored[name][made["mask"]], made[column][made["mask"]], atol=1e-5)


@pytest.mark.oracle("ghpo")
def test_numbers_of_the_source() -> None:
    """Half of 201 characters is 100; the verdicts and formats of the second hint give these advantages."""
    assert begin("x" * 201, 0.5) == hint("x" * 201, 0.5) == "x" * 100
    assert share_of([[False] * 4, [False] * 4, [True, False, False, False]], SHARES) == 0.5
    rewards = torch.tensor([1.5, 0.5, 0.0, 0.5], dtype=torch.float64)
    a = group_norm(rewards, torch.zeros(4).long(), scale="std", eps=1e-4)
    np.testing.assert_allclose(a, [1.3905, -0.1986, -0.9932, -0.1986], atol=1e-4)


@given(st.text(max_size=40), st.floats(0.01, 0.99))
def test_a_hint_is_a_beginning(text: str, share: float) -> None:
    assert begin(text, share) == hint(text, share)


@pytest.mark.reduction("ghpo")
@pytest.mark.parametrize("how", ["all solved", "too early", "no shares", "no room", "no solution"])
def test_without_hints_it_is_plain_sampling(run: Run, how: str) -> None:
    prompts = [run.prompt(i) for i in range(3)]
    spec = Sampling(max_tokens=48 - len(prompts[0].tokens)) if how == "no room" else SPEC
    settings = {"too early": {"after": 3}, "no shares": {"shares": ()}}.get(how, {})
    made = hinted(
        run.policy, prompts, SEEDS, spec, True, 2, lambda row: None if how == "no solution" else SOLUTION,
        lambda text, row: how == "all solved", cue=">", **settings,
    )  # fmt: skip
    plain = run.policy.rollout(prompts, SEEDS, spec, entropy=True)
    assert made.texts == plain.texts and made.prompts == prompts
    assert all(torch.equal(made[c], plain[c]) for c in plain.columns)


def test_a_group_that_succeeds_keeps_its_rollouts_while_another_is_hinted(run: Run) -> None:
    yes, no = [[True] * 4], [[False] * 4] * 4  # who has succeeded is not asked again
    prompts, made, _ = roll(run, [yes, no, yes])
    plain = run.policy.rollout(prompts, SEEDS, SPEC)
    assert made.texts[:4] + made.texts[8:] == plain.texts[:4] + plain.texts[8:]
    assert [p.tokens == q.tokens for p, q in zip(made.prompts, prompts, strict=True)] == [True, False, True]


def test_the_hint_of_a_conversation_is_behind_its_last_message(run: Run) -> None:
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    prompt = type(run.prompt(0))((0,), {"prompt": talk}, 5)
    assert prompt.followed_by("+hint") == [talk[0], {"role": "user", "content": "u+hint"}]
    assert talk[1]["content"] == "u"


@pytest.mark.parametrize("shares", [(0.5, 0.25), (0.5, 1.0), (0.0,)])
def test_shares_that_make_no_sense_are_refused(run: Run, shares: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match="hints grow and tell less than all"):
        roll(run, [[[True] * 4] * 4] * 3, shares=shares)


def test_a_task_without_a_verifier_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"{i}>", "why": "1+1"}) for i in range(12)))
    task = f"task={{jsonl: {{path: {file}, solution: why, held_out: 1}}}}"
    overrides = [*TINY[1:], task, "model=no/such", f"rewards.functions={__file__}:length"]
    with pytest.raises(RecipeError, match=r"hinted asks the task's verifier"):
        build(resolve(method="ghpo", overrides=overrides))


def length(completions: list[str], **columns: object) -> list[float]:
    return [float(len(c)) for c in completions]
