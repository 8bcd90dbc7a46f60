"""Partial rewards for SQL (Reasoning-SQL, arXiv:2503.23157), and what its queries give.

Each is a reward function by itself: `rewards.functions=[{fn: coterie.rewards.sql:schema_linking, weight: 1}]`. They
read the task's columns `database` and `gold`, and the final answer of the episode, or the completion where there is no
episode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from coterie.environments.base import Episode
from coterie.environments.database import Database, QueryError
from coterie.environments.sql import matches_gold, query_in

_WORD = re.compile(r"'(?:[^']|'')*'|[A-Za-z_]\w*")
_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


def execution(
    completions: list[str], database: list[str], gold: list[str], episode: list[Episode] | None = None, **_: Any
) -> list[float | None]:
    """1 where the query gives what the reference gives."""
    return _each(completions, database, gold, episode, lambda query, row: float(matches_gold(query, row)))


def syntax(
    completions: list[str], database: list[str], gold: list[str], episode: list[Episode] | None = None, **_: Any
) -> list[float | None]:
    """1 where the query can be run."""
    return _each(completions, database, gold, episode, _runs)


def schema_linking(
    completions: list[str], database: list[str], gold: list[str], episode: list[Episode] | None = None, **_: Any
) -> list[float | None]:
    """The share of the reference's tables and columns that the query names too (a recall)."""
    return _each(completions, database, gold, episode, _linked)


def ngrams(
    completions: list[str], database: list[str], gold: list[str], episode: list[Episode] | None = None, **_: Any
) -> list[float | None]:
    """Jaccard index of the pairs of neighbouring words in query and reference, in lower case."""
    return _each(completions, database, gold, episode, lambda query, row: _overlap(query, row["gold"]))


def tags(completions: list[str], episode: list[Episode] | None = None, **_: Any) -> list[float | None]:
    """0.125 for each of four tags that occurs exactly once on its line (<think>, <answer> and what closes them), less
    0.001 for each character behind the last, line ends aside."""
    texts = completions if episode is None else [e.actions[-1] if e.actions else "" for e in episode]
    out: list[float | None] = []
    for i, text in enumerate(texts):
        after = text.rpartition("\n</answer>")[2].strip("\n") if "\n</answer>" in text else ""
        score = sum(0.125 for tag in _TAGS if ("\n" + text).count(tag) == 1) - 0.001 * len(after)
        out.append(None if episode is not None and episode[i].failed is not None else score)
    return out


def _each(
    completions: Sequence[str],
    database: Sequence[str],
    gold: Sequence[str],
    episodes: Sequence[Episode] | None,
    score: Callable[[str, Mapping[str, Any]], float],
) -> list[float | None]:
    out: list[float | None] = []
    for i, text in enumerate(completions):
        episode = None if episodes is None else episodes[i]
        if episode is not None and episode.failed is not None:
            out.append(None)
            continue
        if episode is not None:
            text = str(episode.infos[-1].get("answer", "")) if episode.infos else ""
        query = query_in(text)
        known = re.search(r"\bselect\b", query, re.IGNORECASE)
        out.append(score(query, {"database": database[i], "gold": gold[i]}) if known else 0.0)
    return out


def _runs(query: str, row: Mapping[str, Any]) -> float:
    database = Database(row["database"])
    try:
        database.run(query)
    except QueryError:
        return 0.0
    finally:
        database.close()
    return 1.0


def _linked(query: str, row: Mapping[str, Any]) -> float:
    database = Database(row["database"])
    names = database.names
    database.close()
    said, wanted = ({w.lower() for w in _WORD.findall(text)} & names for text in (query, row["gold"]))
    return len(said & wanted) / len(wanted) if wanted else 1.0


def _overlap(a: str, b: str) -> float:
    pairs = [set(pairwise(text.lower().split())) for text in (a, b)]
    both = pairs[0] | pairs[1]
    return len(pairs[0] & pairs[1]) / len(both) if both else float(a.lower().split() == b.lower().split())
