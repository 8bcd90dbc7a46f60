"""Buying what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.shop import COLOURS, HELP, KINDS, PAGE, SIZES, TRAITS, Shop
from coterie.environments.text_world import opening
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate

_MAKERS = ("acme", "bolt", "cove", "dell", "east", "fjord", "gale", "hill")


@task(paper="arXiv:2207.01206")
def shop(
    *, items: int = 30, turns: int = 12, chat: bool = False, train: int = 400, held_out: int = 100, seed: int = 0
) -> Task:
    """'Buy a soft red bag, size m, for at most 40 dollars.': search, look, choose, buy; in the manner of WebShop.

    items: in the shop, which is another one for each row. The reward is the share of what was asked for. chat: prompts
    are conversations.
    """
    if not 4 <= items <= 200 or turns < 6:
        raise RecipeError(f"shop has 4 to 200 items and 6 turns or more, got {items} and {turns}")

    def make(rng: np.random.Generator) -> Row:
        stock: list[dict[str, Any]] = []
        for _ in range(items):
            kind, maker = str(rng.choice(KINDS)), str(rng.choice(_MAKERS))
            traits = sorted(rng.choice(TRAITS, 2, replace=False).tolist())
            colours = sorted(rng.choice(COLOURS, 3, replace=False).tolist())
            stock.append(
                {"name": f"{maker} {kind}", "kind": kind, "traits": traits, "colours": colours,
                 "price": int(rng.integers(5, 100))}
            )  # fmt: skip
        wanted = stock[int(rng.integers(items))]
        goal: dict[str, Any] = {
            "kind": wanted["kind"], "traits": wanted["traits"], "colour": str(rng.choice(wanted["colours"])),
            "size": str(rng.choice(SIZES)), "price": int(wanted["price"] + rng.integers(0, 10)),
        }  # fmt: skip
        text = (
            f"Buy a {' and '.join(goal['traits'])} {goal['kind']}, {goal['colour']}, size {goal['size']}, for at most "
            f"{goal['price']} dollars.\n{HELP}"
        )
        return {"prompt": opening(text, chat=chat), "items": stock, "goal": goal}

    rows, held = generate(make, train, held_out, seed)
    return Task(
        "shop", rows, held, rewards=[WeightedReward(episode_return, "return")], script=_script,
        world=World(Shop, turns=turns),
    )  # fmt: skip


def _script(row: Row, observations: Sequence[Any]) -> str:
    """Search for all that is wanted, turn to the page of the first item that is just that, and buy it."""
    goal, words = row["goal"], [row["goal"]["kind"], *row["goal"]["traits"], row["goal"]["colour"]]
    shop = Shop()
    shop.reset(row)
    shop.step(f"search {' '.join(words)}")
    place = next(
        p for p, i in enumerate(shop.found)
        if row["items"][i]["kind"] == goal["kind"] and row["items"][i]["price"] <= goal["price"]
        and row["items"][i]["traits"] == goal["traits"] and goal["colour"] in row["items"][i]["colours"]
    )  # fmt: skip
    plan = [f"search {' '.join(words)}", *["next"] * (place // PAGE), f"look {shop.found[place]}"]
    return [*plan, f"choose {goal['colour']}", f"choose {goal['size']}", "buy"][len(observations)]
