"""A made-up corpus: people, firms, cities and countries, their relations, a passage for each, and questions that need
several passages."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RELATIONS: dict[str, dict[str, tuple[str, str, str]]] = {
    "person": {
        "born_in": ("city", "the birthplace of {}", "{} was born in {}."),
        "works_for": ("firm", "the employer of {}", "{} works for {}."),
        "friend": ("person", "the best friend of {}", "The best friend of {} is {}."),
    },
    "firm": {
        "based_in": ("city", "the home city of {}", "{} has its offices in {}."),
        "founder": ("person", "the founder of {}", "{} was founded by {}."),
    },
    "city": {
        "country": ("country", "the country of {}", "{} lies in {}."),
        "mayor": ("person", "the mayor of {}", "The mayor of {} is {}."),
    },
    "country": {"capital": ("city", "the capital of {}", "The capital of {} is {}.")},
}
"""Of each kind, its relations: the kind they lead to, how a question says it, how a passage does."""
SHARE = {"person": 1.0, "firm": 0.3, "city": 0.3, "country": 0.1}
_FIRST = (
    "Bal",
    "Cor",
    "Dan",
    "Fel",
    "Gor",
    "Hal",
    "Jor",
    "Kel",
    "Lor",
    "Mar",
    "Nor",
    "Pel",
    "Ros",
    "Sel",
    "Tor",
    "Vel",
)
_LAST = ("a", "en", "ia", "il", "o", "um", "us", "wick", "by", "dan", "mir", "nath")


@dataclass(frozen=True)
class Corpus:
    """Entities with their kinds, what each relation leads to, and the passages."""

    kinds: Mapping[str, str]
    facts: Mapping[tuple[str, str], str]
    passages: tuple[str, ...]

    def relations(self, entity: str) -> list[str]:
        return list(RELATIONS[self.kinds[entity]])


@functools.lru_cache(8)
def make_corpus(seed: int, people: int) -> Corpus:
    """The corpus of a seed, always the same; every relation of every entity leads to one other entity."""
    rng = np.random.default_rng(seed)
    names = [f"{a}{b}{c}" for a in _FIRST for b in ("", "an", "el", "or") for c in _LAST]
    order = iter(rng.permutation(len(names)).tolist())
    of_kind = {kind: [names[next(order)] for _ in range(max(int(people * share), 2))] for kind, share in SHARE.items()}
    kinds = {name: kind for kind, own in of_kind.items() for name in own}
    facts = {}
    passages = []
    for name, kind in kinds.items():
        said = []
        for relation, (leads, _, sentence) in RELATIONS[kind].items():
            others = [other for other in of_kind[leads] if other != name]
            to = others[int(rng.integers(len(others)))]
            facts[name, relation] = to
            said.append(sentence.format(name, to))
        passages.append(f"{name} is a {kind}. {' '.join(said)}")
    return Corpus(kinds, facts, tuple(passages))


def make_question(rng: np.random.Generator, corpus: Corpus, hops: int) -> tuple[str, list[str], list[str]]:
    """A question over `hops` relations, the entities on the way (the last is the answer), and the relations."""
    names = list(corpus.kinds)
    while True:
        chain = [names[int(rng.integers(len(names)))]]
        path: list[str] = []
        phrase = chain[0]
        while len(path) < hops:
            relation = str(rng.choice(corpus.relations(chain[-1])))
            phrase = RELATIONS[corpus.kinds[chain[-1]]][relation][1].format(phrase)
            path.append(relation)
            chain.append(corpus.facts[chain[-1], relation])
        if len(set(chain)) == len(chain):  # no way leads back
            return f"What is {phrase}?", chain, path
