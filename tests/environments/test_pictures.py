"""Tiny pictures: what a drawing, a description and an answer earn, and what graders are told of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.environments.pictures import DrawAndRead, Redraw, share_alike, share_that_fits
from coterie.errors import RecipeError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollout.shared_episodes import play_alone
from coterie.rollouts import Prompt, Sampling
from coterie.tasks import draw_and_read, redraw
from coterie.tasks.base import validate


def test_a_description_earns_what_its_drawings_do_on_average() -> None:
    game = Redraw(characters=2, drawings=2)
    assert game.reset({"picture": "0110"}) == {"describe": ""}
    assert game.step({"describe": "cb"})["draw"].observation == "cb>"
    first, again = game.step({"draw": "0110"})["draw"]
    assert (first.reward, first.done, first.info["success"], again.observation) == (1.0, True, True, "cb>")
    last = game.step({"draw": "0111"})
    assert (last["draw"].reward, last["draw"].info["success"], last["draw"].done) == (0.75, False, True)
    assert (last["describe"].reward, last["describe"].info["success"], last["describe"].done) == (0.875, False, True)


def test_the_answer_is_known_from_what_was_asked_for() -> None:
    game = DrawAndRead(answers=2)
    assert game.reset({"counts": {"r": 2, "g": 1}, "asked": "g"}) == {"draw": ""}
    assert game.step({"draw": "ggr"})["read"].observation == "ggr g>"
    told, again = game.step({"read": "2"})["read"]  # true of the picture, which is not what was asked for
    assert told.reward == 0.0 and told.info["picture"] == pytest.approx(2 / 3) and again.observation == "ggr g>"
    last = game.step({"read": "1"})
    assert last["read"].reward == 1.0 and last["read"].info["answer"] == 1.0
    assert last["draw"].info == {"success": False, "picture": pytest.approx(2 / 3), "answer": 0.5}
    assert last["draw"].reward == pytest.approx(2 / 3)


def test_of_a_description_that_is_too_long_nothing_is_seen() -> None:
    game = Redraw(characters=2, drawings=2)
    game.reset({"picture": "0110"})
    assert game.step({"describe": "cba"})["draw"].observation == ">"
    assert game.step({"draw": "0111"})["draw"][1].observation == ">"


@pytest.mark.parametrize(("drawn", "alike"), [("01", 1.0), ("0", 0.5), ("", 0.0), ("10", 0.0), ("010", 0.5), ("1", 0)])
def test_shares_of_equal_cells(drawn: str, alike: float) -> None:
    assert share_alike(drawn, "01") == alike


@pytest.mark.parametrize(
    ("drawn", "fits"),
    [("rgr", 1.0), ("grr", 1.0), ("rg", 2 / 3), ("rgrr", 0.75), ("", 0.0), ("xyz", 0.0), ("rrr", 2 / 3)],
)
def test_shares_of_cells_that_fit(drawn: str, fits: float) -> None:
    assert share_that_fits(drawn, {"r": 2, "g": 1}) == pytest.approx(fits)


def play(task: Any, group: int = 3) -> Any:
    spec = TinySpec(vocabulary=task.vocabulary, layers=1, width=16, heads=2, context=40)
    policy = CausalLM.load(ModelSpec(init=spec, seed=1))
    prompts = [Prompt(policy.encode(r["prompt"]), r, i) for i, r in enumerate(task.train[:2])]
    seeds = [[10 * g + k for k in range(group)] for g in range(2)]
    return policy, play_alone(policy, prompts, seeds, Sampling(max_tokens=16), task.world)


@pytest.mark.parametrize("task", [redraw(drawings=3), draw_and_read(answers=3)], ids=lambda t: t.name)
def test_episodes_have_one_row_of_one_side_and_several_of_the_other(task: Any) -> None:
    policy, out = play(task)
    rows = [{**out.prompts[g].row, "episode": e} for g, e in zip(out["groups"].tolist(), out.episodes, strict=True)]
    columns = {name: [r.get(name) for r in rows] for name in rows[0]}
    graded = {r.name: torch.tensor(r.fn(out.texts, **columns)) for r in task.rewards}
    many = (graded["draws"] > 0) == (task.name == "redraw")
    assert len(out) == 2 * 3 * 4 and int(many.sum()) == 2 * 3 * 3
    assert not out["truncated"].any()
    for episode in range(6):
        mine = out["episode"] == episode
        lone = mine & ~many
        assert int(lone.sum()) == 1 and int((mine & many).sum()) == 3
        name = "alike" if task.name == "redraw" else "answer"
        assert graded[name][lone] == pytest.approx(float(graded[name][mine & many].mean()))
    if task.name == "draw-and-read":
        assert torch.equal(graded["own"][many], graded["answer"][many])
        assert torch.equal(graded["own"][~many], graded["picture"][~many])
    again = policy.score(out, {"logp"})["logp"].detach()
    assert torch.allclose(again[out["mask"]], out["logp_old"][out["mask"]], atol=1e-5)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: redraw(characters=9), "9 of 4 cells"),
        (lambda: redraw(drawings=0), "drawn 0 times"),
        (lambda: draw_and_read(colours=5), "in 5 colours"),
        (lambda: draw_and_read(answers=0), "with 0 answers"),
    ],
)
def test_games_that_cannot_be_are_refused(made: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        made()


@pytest.mark.parametrize(
    "task",
    [redraw(), redraw(cells=1, characters=1), redraw(cells=5), draw_and_read(), draw_and_read(cells=1, colours=2)],
)
def test_prompts_that_are_held_out_are_never_trained_on_and_the_script_wins(task: Any) -> None:
    assert not {r["prompt"] for r in task.train} & {r["prompt"] for r in task.held_out}
    report = validate(task, limit=20)
    assert report.rows > 0 and report.references_rejected == 0


def test_where_a_letter_cannot_stand_for_its_cells_there_is_no_script() -> None:
    assert redraw(cells=8, characters=2).script is None and redraw(cells=6, characters=2).script is not None


def test_rows_are_repeatable_and_their_texts_are_in_the_vocabulary() -> None:
    for make in (redraw, draw_and_read):
        a, b, other = make(seed=1), make(seed=1), make(seed=2)
        assert (a.train, a.held_out) == (b.train, b.held_out) and a.train != other.train
        assert set("".join(r["prompt"] + "".join(r["prompts"].values()) for r in a.train)) <= set(a.vocabulary)
