"""Questions about generated SQLite databases, answered by a query."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.sql import Sql, make_problem, query, schema_of
from coterie.environments.tool_calls import Call, Format, write
from coterie.environments.tools import Tool, ask
from coterie.pieces import task
from coterie.rewards import sql as rewards
from coterie.rewards.functions import WeightedReward
from coterie.rollout.contexts import Window, Workspace
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate

HOW = "Look at the data with the tool where that helps. Then answer with one SQL query and nothing else."
CONTEXTS = {"full": None, "window": Window(), "workspace": Workspace()}


@task(paper="arXiv:2503.23157")
def sql(
    *,
    rows: int = 8,
    turns: int = 4,
    format: Format = "hermes",
    chat: bool = True,
    partial: bool = False,
    context: Literal["full", "window", "workspace"] = "full",
    train: int = 400,
    held_out: int = 100,
    seed: int = 0,
) -> Task:
    """Questions about a small SQLite database, with a tool that runs queries; the answer is a query.

    rows: of each table. turns: calls and the answer together. format: how calls are written. chat: prompts are
    conversations with the tool in the chat template, else plain text. partial: Reasoning-SQL's rewards (execution 3,
    and syntax, schema linking, n-grams and tags) in place of the execution match alone. context: what is still read of
    an episode (see `coterie.rollout.contexts`). Held out are questions on databases of their own.
    """

    def make(rng: np.random.Generator) -> Row:
        domain, database, question, gold = make_problem(rng, rows)
        prompt = ask(f"{schema_of(domain)}\n{question}", [Tool.of(query)], chat=chat, how=HOW)
        return {"prompt": prompt, "question": question, "database": database, "gold": gold}

    kept, held = generate(make, train, held_out, seed)
    graders = [WeightedReward(episode_return, "return")]
    if partial:
        named = (rewards.execution, rewards.syntax, rewards.schema_linking, rewards.ngrams, rewards.tags)
        graders = [WeightedReward(fn, fn.__name__, 3.0 if fn is rewards.execution else 1.0) for fn in named]

    def script(row: Row, observations: Sequence[Any]) -> str:
        return f"```sql\n{row['gold']}\n```" if observations else write(Call("query", {"sql": row["gold"]}), format)

    return Task(
        "sql", kept, held, rewards=graders, script=script,
        world=World(functools.partial(Sql, format=format), turns=turns, context=CONTEXTS[context]),
    )  # fmt: skip
