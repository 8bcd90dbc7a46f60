"""Demonstrations: from which column they come, how they become tokens, and what is refused without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from coterie.build import build, build_task
from coterie.clock import Clock
from coterie.collect import roll_out
from coterie.demonstrations import Demonstrations
from coterie.errors import RecipeError
from coterie.recipe import resolve

TINY = ["draw.prompts=2", "rollout.group_size=4", "threads=1", "steps=1", "rollout.max_tokens=4"]
MODEL = "model={init: {layers: 1, width: 16, heads: 2, context: 16}}"


def data(folder: Path, *solutions: str | None) -> str:
    rows = [{"prompt": f"{i}>", "answer": str(i), "why": s} for i, s in enumerate(solutions)]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(r if r["why"] is not None else {**r, "why": None}) for r in rows))
    return f"task={{jsonl: {{path: {file}, solution: why, held_out: 1}}}}"


def test_rows_of_a_file_may_have_one_or_not(tmp_path: Path) -> None:
    task = data(tmp_path, *["1+1", None] * 6)
    run = build(resolve(method="chord", overrides=[*TINY, MODEL, task, f"rewards.functions={__file__}:length"]))
    assert run.task.reference is None
    shown = run.demonstrations().draw(20, run.prompt, 0)
    assert len(shown) == 20 and {p.row["why"] for p in shown.prompts} == {"1+1"}
    end = run.policy.tokenizer.eos_token_id
    assert all(
        run.policy.decode(t[m][:-1].tolist()) == "1+1" for t, m in zip(shown["tokens"], shown["mask"], strict=True)
    )
    assert (shown["tokens"][:, 3] == end).all() and shown["lengths"].tolist() == [4] * 20


def test_an_end_is_put_once_and_what_does_not_fit_is_cut(tmp_path: Path) -> None:
    task = data(tmp_path, *["1" * 40] * 12)
    run = build(resolve(method="chord", overrides=[*TINY, MODEL, task, f"rewards.functions={__file__}:length"]))
    prompt = run.prompt(0)
    shown = run.demonstrations().of(prompt)
    assert len(shown) == 16 - len(prompt.tokens)
    assert torch.isfinite(run.policy.score(run.demonstrations().draw(3, run.prompt, 1))["logp"]).all()


def test_the_reference_completions_of_a_task_serve() -> None:
    run = build(
        resolve(
            method="chord",
            overrides=[*TINY, MODEL.replace("16}}", "64}}"), "task={countdown: {train: 20, held_out: 4}}"],
        )
    )
    told = Demonstrations(run.task, run.policy).of(run.prompt(3))
    assert run.policy.decode(told) == run.task.train[3]["solution"]


def test_only_prompts_that_have_one_get_it_beside_their_rollouts(tmp_path: Path) -> None:
    task = data(tmp_path, *["1+1", None] * 6)
    run = build(resolve(method="luffy", overrides=[*TINY, MODEL, task, f"rewards.functions={__file__}:length"]))
    made = roll_out(run, 0, 0, 8, Clock())
    shown = [made.prompts[g].row["why"] for g in made["groups"][made["anchor"]].tolist()]
    has = [p.row["why"] == "1+1" for p in made.prompts]
    assert shown == ["1+1"] * sum(has) and 0 < sum(has) < 8
    assert made["groups"].bincount().tolist() == [5 if h else 4 for h in has]


def test_a_task_without_any_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    task = data(tmp_path, *[None] * 12)
    recipe = resolve(method="chord", overrides=[*TINY, task, "model=no/such", f"rewards.functions={__file__}:length"])
    assert build_task(recipe).demonstration is None
    with pytest.raises(RecipeError, match=r"objective\.imitation=likelihood(.|\n)*task\.solution=COLUMN"):
        build(recipe)


def test_an_imitation_reads_what_is_known_of_demonstrations(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from coterie.pieces import imitation\n"
        "@imitation()\ndef by_reward(logp, rewards, *, mu: float = 0.5): return -logp\n"
        "@imitation()\ndef no_share(logp): return -logp\n"
    )
    for name, words in (("by_reward", "reads column 'rewards'"), ("no_share", "has no setting mu")):
        recipe = resolve(overrides=[*TINY, MODEL, "task=sort", f"objective.imitation={tmp_path}/mine.py:{name}"])
        with pytest.raises(RecipeError, match=words):
            build(recipe)


def length(completions: list[str], **columns: object) -> list[float]:
    return [float(len(c)) for c in completions]
