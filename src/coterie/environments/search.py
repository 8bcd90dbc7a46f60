"""Questions to answer by looking things up: by words in passages (BM25), or along the edges of a graph of facts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from coterie.environments.corpus import make_corpus
from coterie.environments.tool_calls import Format
from coterie.environments.tool_world import ToolWorld
from coterie.environments.tools import ToolError
from coterie.errors import RecipeError
from coterie.rewards.verifiers.f1 import f1

Retriever = Literal["bm25", "graph", "both"]


class Bm25:
    """Passages by their words (package bm25s, extra `agents`)."""

    def __init__(self, passages: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise RecipeError(
                "searching by BM25 needs the package bm25s", hint="pip install coterie[agents]"
            ) from error
        self.passages = list(passages)
        self._tokens = functools.partial(bm25s.tokenize, stopwords="en", show_progress=False)
        self._index = bm25s.BM25()
        self._index.index(self._tokens(self.passages), show_progress=False)

    def __call__(self, query: str, k: int) -> list[str]:
        """The k passages that fit best, the best first; only those that share a word with the query."""
        tokens = self._tokens([query[:1000]])
        if not tokens.ids[0]:
            return []
        found, scores = self._index.retrieve(tokens, k=min(k, len(self.passages)), show_progress=False)
        return [self.passages[i] for i, score in zip(found[0].tolist(), scores[0].tolist(), strict=True) if score > 0]


@functools.lru_cache(8)
def _indexed(seed: int, people: int) -> Bm25:
    return Bm25(make_corpus(seed, people).passages)


def tools(seed: int, people: int, retriever: Retriever, k: int = 3) -> list[Callable[..., Any]]:
    """The tools for the corpus of a seed."""
    corpus = make_corpus(seed, people)

    def search(query: str) -> str:
        """Find the passages that fit a query best."""
        found = _indexed(seed, people)(query, k)
        return "\n".join(found) or "nothing found"

    def lookup(entity: str, relation: str) -> str:
        """Follow a relation of an entity in the graph of facts."""
        if entity not in corpus.kinds:
            raise ToolError(f"there is no entity {entity[:40]!r}")
        if (entity, relation) not in corpus.facts:
            raise ToolError(f"{entity} has no {relation[:40]!r}; it has {', '.join(corpus.relations(entity))}")
        return corpus.facts[entity, relation]

    given: dict[Retriever, list[Callable[..., Any]]] = {"bm25": [search], "graph": [lookup], "both": [search, lookup]}
    return given[retriever]


class Search(ToolWorld):
    """Rows have `answer`. The reward of the final answer is its word F1 with that; success is an answer of the same
    words."""

    def __init__(self, seed: int, people: int, *, retriever: Retriever = "bm25", format: Format = "hermes") -> None:
        super().__init__(
            tools(seed, people, retriever), lambda answer, row: f1(answer, row["answer"]), format=format, longest=1000
        )
