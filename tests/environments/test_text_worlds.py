"""Household, shop, Sokoban, Wordle, twenty questions, the emotional user and the dilemmas: rules, scripts, splits."""

from __future__ import annotations

from typing import Any

import pytest

from coterie import registry
from coterie.environments.emotional_user import EmotionalUser
from coterie.environments.household import Household
from coterie.environments.prisoners_dilemma import PARTNERS, PAYOFF, PrisonersDilemma, best_from
from coterie.environments.scripted import played
from coterie.environments.shop import Shop, worth
from coterie.environments.sokoban import Sokoban, push, read, solution
from coterie.environments.text_world import command_of
from coterie.environments.trust_and_split import TrustAndSplit, split, values
from coterie.environments.twenty_questions import (
    PROPERTIES,
    THINGS,
    TwentyQuestions,
    best_question,
    still_possible,
)
from coterie.environments.wordle import WORDS, Wordle, best_guess, feedback
from coterie.errors import RecipeError
from coterie.tasks.base import Task, validate

FEW = {"train": 30, "held_out": 15}
TASKS: dict[str, dict[str, Any]] = {
    "household": FEW, "shop": FEW, "sokoban": FEW, "wordle": {}, "twenty-questions": FEW, "emotional-user": FEW,
    "prisoners-dilemma": {}, "trust-and-split": FEW,
}  # fmt: skip
HIDDEN = ("target", "secret", "wishes", "partner", "rounds", "hands")


def made(slug: str, **settings: Any) -> Task:
    return registry.get("task", slug).fn(**{**TASKS[slug], **settings})


@pytest.mark.parametrize("slug", TASKS)
def test_scripts_succeed_silence_does_not_and_rows_are_disjoint(slug: str) -> None:
    task = made(slug)
    report = validate(task, limit=15)
    assert report.ok and report.rows >= 12
    assert made(slug).train == task.train
    assert made(slug, seed=1).train != task.train

    def content(row: Any) -> str:
        return repr((row["prompt"], *(row.get(name) for name in HIDDEN)))

    assert not {content(r) for r in task.train} & {content(r) for r in task.held_out}
    assert len({content(r) for r in task.train}) == len(task.train)


@pytest.mark.parametrize("slug", TASKS)
@pytest.mark.parametrize("chat", [False, True])
def test_nothing_that_is_written_breaks_a_world(slug: str, chat: bool) -> None:
    task = made(slug, chat=chat)
    assert task.world is not None and task.script is not None
    row = task.held_out[0]
    assert isinstance(row["prompt"], str) != chat
    noise = [
        "",
        "\0",
        "☃" * 50,
        "go to go to",
        "take  from ",
        "look 99999999999",
        "is it",
        "keep -1",
        "say",
        "{}",
        "\n\n>",
    ]
    for word in noise:
        world = task.world.make()
        world.reset(row)
        step = world.step(word)
        assert isinstance(step.observation, str) and step.reward == 0 and not step.info["success"], word
        if slug not in ("emotional-user", "trust-and-split"):
            assert not step.info["valid"] and not step.done, word
    episode = played(task.world, row, task.script)
    assert episode.done and episode.success and 0 < episode.total <= 1.0 + 1e-9


def test_a_command_is_the_last_line() -> None:
    assert command_of("I think.\n\n> Go  to DRAWER 1.\n ") == "go to drawer 1" and command_of(" \n") == ""


def told(world: Any, command: str) -> str:
    return str(world.step(command).observation)


def test_the_household() -> None:
    row = {"prompt": "?", "thing": "mug", "need": "heat", "goal": "shelf 1",
           "places": {"drawer 1": ["mug", "egg"], "shelf 1": [], "microwave 1": []}}  # fmt: skip
    world = Household()
    world.reset(row)
    assert "Nothing happens" in told(world, "take mug from drawer 1") and "no bed 1" in told(world, "go to bed 1")
    assert "closed" in told(world, "go to drawer 1") and "Nothing" in told(world, "take mug from drawer 1")
    assert "mug, egg" in told(world, "open drawer 1") and "hold the mug" in told(world, "take mug from drawer 1")
    assert "Nothing" in told(world, "take egg from drawer 1")  # one thing at a time
    assert "Nothing" in told(world, "heat mug with microwave 1")
    told(world, "go to shelf 1")
    assert not world.step("put mug on shelf 1").done  # it is cold
    told(world, "take mug from shelf 1")
    told(world, "go to microwave 1")
    assert "hot now" in told(world, "heat mug with microwave 1")
    told(world, "go to shelf 1")
    end = world.step("put mug on shelf 1")
    assert end.done and end.reward == 1.0 and end.info["success"]
    assert row["places"]["drawer 1"] == ["mug", "egg"]  # the row is as it was


def test_the_shop() -> None:
    goal = {"kind": "bag", "traits": ["soft", "warm"], "colour": "red", "size": "m", "price": 20}
    item = {"name": "acme bag", "kind": "bag", "traits": ["soft", "warm"], "price": 20, "colours": ["blue", "red"]}
    other = {**item, "name": "bolt bag", "traits": ["soft", "quiet"], "price": 30}
    lamps = [{**item, "name": f"l{i} lamp", "kind": "lamp", "traits": ["plain"]} for i in range(5)]
    assert worth(item, {"colour": "red", "size": "m"}, goal) == 1.0 and worth(other, {}, goal) == 1 / 5
    assert worth(item, {"colour": "blue", "size": "m"}, goal) == 4 / 5 and worth(lamps[0], {}, goal) == 0.0
    world = Shop()
    world.reset({"prompt": "?", "items": [*lamps, other, item], "goal": goal})
    assert "first" in told(world, "buy") and "Nothing found" in told(world, "search zebra")
    assert "6: acme bag, 20 dollars\n5: bolt bag" in told(world, "search soft warm red bag")
    assert "l4" in told(world, "next") and "l4" in told(world, "next") and "acme" in told(world, "back")
    assert "no such item" in told(world, "look 42") and "acme bag: a bag, soft, warm" in told(world, "look 6")
    assert "no green" in told(world, "choose green")
    told(world, "choose blue")
    told(world, "choose red")
    end = world.step("buy")
    assert end.done and end.reward == 4 / 5 and not end.info["success"]  # no size


def test_sokoban() -> None:
    grid = "######\n#@$. #\n#    #\n######"
    world = Sokoban()
    world.reset({"prompt": "?", "grid": grid})
    assert told(world, "up") == f"\n{grid}\n> "  # a wall
    end = world.step("Right")
    assert end.done and end.reward == 1.0 and "# @* #" in str(end.observation)
    assert solution(grid, 5) == ("right",) and solution("#####\n#@ $#\n#. ##\n#####", 9) is None
    walls, _, boxes, at = read("#####\n#@$$#\n#####")
    assert push(walls, boxes, at, (0, 1)) is None  # two boxes in a row
    assert read("#+*#")[1] == {(0, 1), (0, 2)}


def test_wordle() -> None:
    assert feedback("crane", "crane") == "ggggg" and feedback("geese", "eagle") == "yybbg"
    assert len(set(WORDS)) == len(WORDS) and all(len(w) == 5 and w.islower() for w in WORDS)
    assert feedback("speed", "crepe") == "bygyb" and feedback("eerie", "crepe") == "ybybg"
    world = Wordle()
    world.reset({"prompt": "?", "target": "apple"})
    for n in range(6):
        step = world.step("zebra")
        assert step.done == (n == 5) and step.reward == 0.0
    worst = 0
    for target in WORDS[::7]:
        said: list[tuple[str, str]] = []
        while not said or said[-1][0] != target:
            guess = best_guess(said)
            said.append((guess, feedback(guess, target)))
        worst = max(worst, len(said))
    assert worst <= 5


def test_twenty_questions() -> None:
    world = TwentyQuestions()
    world.reset({"prompt": "?", "secret": "frog", "things": list(THINGS)})
    said = [told(world, q).strip("\n> ") for q in ("is it alive?", "Is it furry", "is it a dog", "is it an animal.")]
    assert said == ["yes", "no", "no", "yes"]
    end = world.step("is it the frog?")
    assert end.done and end.reward == 1.0
    signs = {tuple(t in things.split() for things in PROPERTIES.values()) for t in THINGS}
    assert len(signs) == len(THINGS)  # questions tell all of them apart
    assert still_possible(["dog", "cat", "oak"], [("is it a pet", "yes"), ("is it a dog", "no")]) == ["cat"]
    assert best_question(["oak"]) == "is it a oak"


class Given(EmotionalUser):
    """Its emotion changes as it is told."""

    def _change(self, reply: str) -> int:
        return int(reply)


def talk(changes: list[int]) -> tuple[float, int]:
    user = Given()
    user.reset({"prompt": "?", "topic": "dog", "wishes": ["ask"]})
    for n, change in enumerate(changes):
        step = user.step(str(change))
        if step.done:
            return step.reward, n + 1
        assert step.reward == 0
    return -1.0, len(changes)


def test_emotions() -> None:
    """The catalogue's examples of how an emotion moves, then what moves it here."""
    assert talk([10, 20, 30, 20]) == (1.0, 4) and talk([5, -30]) == (0.05, 2)
    assert talk([0] * 8) == (0.3, 8) and talk([-90]) == (0.0, 1) and talk([99] * 3) == (1.0, 1)
    user = EmotionalUser()
    row = {"prompt": "User: x\nYou: ", "topic": "dog", "wishes": ["acknowledge", "advise"]}

    def change(*replies: str) -> list[int]:
        user.reset(row)
        return [user.step(reply).info["change"] for reply in replies]

    assert change("I am sorry about the dog.", "You could rest.") == [20, 15]
    assert change("You could rest.", "Calm down.", "Hm.", "Why?") == [-10, -20, -5, 5]
    assert change("I understand.", "I UNDERSTAND.", "") == [15, -10, -20]
    strict = EmotionalUser(think=True)
    strict.reset(row)
    assert strict.step("<think>calm down</think>I am sorry.").info["change"] == 15
    end = strict.step("I am sorry.")
    assert end.done and end.reward == 0.0


def test_the_dilemma() -> None:
    world = PrisonersDilemma()
    world.reset({"prompt": "?", "partner": "tit_for_tat", "rounds": 3})
    steps = [world.step(move) for move in ("cooperate", "d", "c")]
    assert [s.reward * 15 for s in steps] == pytest.approx([3, 5, 0]) and steps[-1].done
    assert not steps[-1].info["success"] and "You cooperate, they defect: you have 8" in str(steps[-1].observation)
    for partner, machine in PARTNERS.items():  # by trying all sequences
        best = 0
        for number in range(2**5):
            state, points = next(iter(machine)), 0
            for k in range(5):
                ours = "cd"[number >> k & 1]
                points += PAYOFF[ours, machine[state][0]][0]
                state = machine[state][1 if ours == "c" else 2]
            best = max(best, points)
        assert best_from(partner, next(iter(machine)), 5)[0] == best
    assert best_from("tit_for_tat", "calm", 5)[1] == "ccccd" and best_from("defector", "cross", 2)[1] == "dd"


def test_trust_and_split() -> None:
    assert split((10, 10), (10, 1)) == (50, 5)  # the catalogue's example
    assert split((10, 0), (10, 1)) == (100, 0) and split((2, 3), (1, 10)) == (2, 30)
    assert values("rock", "scissors") == (10, 1) and values("rock", "paper") == (1, 10)
    hands = [["rock", "scissors"], ["rock", "paper"], ["paper", "rock"]]

    def play(*commands: str) -> list[float]:
        world = TrustAndSplit()
        world.reset({"prompt": "?", "hands": hands})
        return [round(world.step(command).reward * 300, 6) for command in commands]

    fair = ["say rock", "keep 10", "say I have rock", "keep 0", "say my hand is paper", "keep 10"]
    assert play(*fair) == [0, 100, 0, 0, 0, 100]
    greedy = [*fair[:3], "keep 10", *fair[4:]]
    assert play(*greedy) == [0, 100, 0, 5, 0, 50]  # it is remembered
    lying = ["say rock", "keep 10", "say scissors", "keep 10", "say paper", "keep 10"]
    assert play(*lying) == [0, 100, 0, 5, 0, 50]
    assert play("keep 10", "keep 0", "keep 10") == [50, 0, 50]  # who says nothing is not trusted


@pytest.mark.parametrize(("slug", "settings"), [
    ("household", {"places": 1}), ("shop", {"turns": 2}), ("sokoban", {"size": 9}), ("wordle", {"held_out": 0}),
    ("twenty-questions", {"things": 1}), ("prisoners-dilemma", {"rounds": 1}), ("trust-and-split", {"rounds": 1}),
])  # fmt: skip
def test_settings_make_sense_here_too(slug: str, settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        made(slug, **settings)
