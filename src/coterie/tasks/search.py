"""Questions over several passages of a made-up corpus, to look up by BM25 or in a graph."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.corpus import make_corpus, make_question
from coterie.environments.search import Retriever, Search, tools
from coterie.environments.tool_calls import Call, Format, write
from coterie.environments.tools import Tool, ask
from coterie.errors import RecipeError
from coterie.pieces import task
from coterie.rewards import retrieval as rewards
from coterie.rewards.functions import WeightedReward
from coterie.rollout.contexts import Window, Workspace
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate

HOW = "Look up what you need. Then give the name that is the answer, as <answer>name</answer>."


@task(paper="arXiv:2507.23581")
def search(
    *,
    retriever: Retriever = "bm25",
    hops: int = 2,
    people: int = 60,
    turns: int = 6,
    format: Format = "hermes",
    chat: bool = True,
    reward: Literal["f1", "form", "retrieve", "cost"] = "f1",
    first: float = 0.2,
    decay: float = 0.5,
    cost: float = 0.1,
    context: Literal["full", "window", "workspace"] = "full",
    train: int = 300,
    held_out: int = 60,
    seed: int = 0,
) -> Task:
    """'What is the country of the birthplace of Torel?': each hop is a passage, or an edge of the graph, to look up.

    retriever: bm25 (needs the extra `agents`), graph, or both. people: in the corpus, which has other things beside.
    format: how calls are written. chat: prompts are conversations with the tools in the chat template, else plain text.
    reward: of the answer (f1), or GraphRAG-R1's three phases: form, then form and retrievals (the first is worth
    `first`, each further one `decay` times the last), then f1 * exp(-cost * retrievals). context: what is still read of
    an episode (see `coterie.rollout.contexts`). Held out are questions on the same corpus.
    """
    if hops < 1 or turns <= hops or not 4 <= people <= 400 or not 0 <= decay < 1:
        raise RecipeError(
            f"search has 1 hop or more, more turns than hops, 4 to 400 people and a decay below 1, got {hops=}, "
            f"{turns=}, {people=}, {decay=}"
        )
    corpus = make_corpus(seed, people)
    described = [Tool.of(fn) for fn in tools(seed, people, retriever)]

    def make(rng: np.random.Generator) -> Row:
        question, chain, path = make_question(rng, corpus, hops)
        prompt = ask(question, described, chat=chat, how=HOW)
        return {"prompt": prompt, "chain": chain, "path": path, "answer": chain[-1]}

    kept, held = generate(make, train, held_out, seed)

    def script(row: Row, observations: Sequence[Any]) -> str:
        at = len(observations)
        if at == len(row["path"]):
            return f"<answer>{row['answer']}</answer>"
        asked: dict[str, str] = {"entity": row["chain"][at], "relation": row["path"][at]}
        call = Call("search", {"query": row["chain"][at]}) if retriever == "bm25" else Call("lookup", asked)
        return write(call, format)

    form = WeightedReward(rewards.well_formed, "form")
    pra = WeightedReward(functools.partial(rewards.attenuated_retrieval, first=first, decay=decay), "retrieve")
    caf = WeightedReward(functools.partial(rewards.cost_aware_f1, cost=cost), "cost")
    graders = {"f1": [WeightedReward(episode_return, "f1")], "form": [form], "retrieve": [form, pra], "cost": [caf]}
    return Task(
        "search", kept, held, rewards=graders[reward], script=script,
        world=World(
            functools.partial(Search, seed, people, retriever=retriever, format=format), turns=turns,
            context={"full": None, "window": Window(), "workspace": Workspace()}[context],
        ),
    )  # fmt: skip
