"""The made-up corpus, its two retrievers, and GraphRAG-R1's rewards."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest

from coterie.environments import Episode
from coterie.environments.corpus import RELATIONS, make_corpus, make_question
from coterie.environments.scripted import played
from coterie.environments.search import Bm25, Search
from coterie.environments.tool_calls import Call, write
from coterie.errors import RecipeError
from coterie.rewards import retrieval
from coterie.tasks.base import validate
from coterie.tasks.search import search


def test_the_corpus_says_every_fact_in_words() -> None:
    corpus = make_corpus(3, 30)
    assert corpus is make_corpus(3, 30) and corpus.passages != make_corpus(4, 30).passages
    assert len(corpus.passages) == len(corpus.kinds) == len(set(corpus.kinds))
    for (entity, relation), to in corpus.facts.items():
        leads, _, sentence = RELATIONS[corpus.kinds[entity]][relation]
        assert corpus.kinds[to] == leads and to != entity
        assert any(p.startswith(f"{entity} is a ") and sentence.format(entity, to) in p for p in corpus.passages)
    rng = np.random.default_rng(0)
    for hops in (1, 2, 3):
        question, chain, path = make_question(rng, corpus, hops)
        assert question.count(" of ") == hops and chain[0] in question and chain[-1] not in question
        for a, relation, b in zip(chain, path, chain[1:], strict=False):
            assert corpus.facts[a, relation] == b


@pytest.mark.parametrize("retriever", ["bm25", "graph", "both"])
def test_the_script_finds_the_answer_and_what_it_looked_up_holds_it(retriever: Any) -> None:
    if retriever == "bm25":
        pytest.importorskip("bm25s", reason="the extra `agents` is not installed")
    task = search(retriever=retriever, train=20, held_out=10)
    assert validate(task).ok and task.train == search(retriever=retriever, train=20, held_out=10).train
    assert task.world is not None and task.script is not None
    for row in task.held_out:
        episode = played(task.world, row, task.script)
        assert row["answer"] in str(episode.observations[-2]) and episode.infos[-1]["calls"] == 2


def test_passages_by_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bm25s", reason="the extra `agents` is not installed")
    index = Bm25(["the red fox", "a blue bird sings", "red and blue paint", "nothing"])
    assert index("bird", 2) == ["a blue bird sings"] and index("Red, blue!", 1) == ["red and blue paint"]
    assert index("", 2) == index("zebra", 2) == index("the", 2) == []
    assert len(index("red blue bird fox paint", 99)) == 3
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(RecipeError, match="coterie\\[agents\\]"):
        Bm25(["x"])


def test_the_graph_says_what_there_is_not() -> None:
    world = Search(0, 20, retriever="graph")
    corpus = make_corpus(0, 20)
    person = next(iter(corpus.kinds))
    world.reset({"prompt": "?", "answer": "Torel Bal"})

    def told(entity: str, relation: str) -> str:
        call = write(Call("lookup", {"entity": entity, "relation": relation}), "hermes")
        return str(world.step(call).observation)

    assert corpus.facts[person, "friend"] in told(person, "friend")
    assert "it has born_in, works_for, friend" in told(person, "capital") and "no entity 'x'" in told("x", "friend")
    end = world.step("<answer>Torel</answer>")
    assert end.reward == pytest.approx(2 / 3) and not end.info["success"] and end.info["calls"] == 1
    for settings in ({"hops": 0}, {"turns": 2}, {"people": 2}, {"decay": 1.0}):
        with pytest.raises(RecipeError):
            search(**settings)


def episode(n: int, score: float, last: str = "<answer>x</answer>", valid: bool = True) -> Episode:
    return Episode(
        rewards=[score],
        actions=["", last],
        infos=[{"calls": 0, "valid": valid}, {"calls": n, "valid": True}],
        done=True,
    )


def test_rewards_of_looking_up() -> None:
    """The catalogue's example: three retrievals and an F1 of 0.8."""
    good = episode(3, 0.8)
    texts = [""] * 4
    many = [good, episode(0, 0.8), Episode(failed="x"), Episode(actions=["?"])]
    assert retrieval.retrievals(texts, episode=many) == [3, 0, None, 0]
    assert retrieval.attenuated_retrieval(texts, episode=many) == pytest.approx([0.35, 0, None, 0])
    assert retrieval.cost_aware_f1(texts, episode=many) == pytest.approx([0.8 * math.exp(-0.3), 0.8, None, 0])
    assert retrieval.cost_aware_f1(texts, episode=many)[0] == pytest.approx(0.5927, abs=1e-4)
    form = retrieval.well_formed(texts, episode=many)
    assert form == [1, 1, None, 0] and form[0] + retrieval.attenuated_retrieval(texts, episode=many)[0] == 1.35
    for bad in (episode(1, 1, "x"), episode(1, 1, valid=False), episode(1, 1, "<answer>a</answer><answer>b</answer>")):
        assert retrieval.well_formed([""], episode=[bad]) == [0]
    # with decay 0 a retrieval counts once, and at no cost only the answer does
    assert retrieval.attenuated_retrieval(texts, episode=many, decay=0.0) == [0.2, 0, None, 0]
    assert retrieval.cost_aware_f1(texts, episode=many, cost=0.0) == [0.8, 0.8, None, 0]


def test_phases_are_rewards_of_the_task() -> None:
    names = {phase: [r.name for r in search(retriever="graph", train=2, held_out=1, reward=phase).rewards]
             for phase in ("f1", "form", "retrieve", "cost")}  # fmt: skip
    assert names == {"f1": ["f1"], "form": ["form"], "retrieve": ["form", "retrieve"], "cost": ["cost"]}
    task = search(retriever="graph", train=2, held_out=1, reward="retrieve", first=1.0, decay=0.25)
    assert task.rewards[1].fn([""], episode=[episode(3, 0)]) == [1.3125]
