"""IGPO's roll-out: prompts that nobody solved are sampled again around pieces of their solution (arXiv:2509.10396)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@strategy(paper="arXiv:2509.10396", writes="given", decisions="unmaskings")
def inpainted(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    reference: Callable[[Mapping[str, Any]], str | None] | None,
    verify: Callable[[Any, Mapping[str, Any]], bool],
    *,
    low: float = 0.2,
    high: float = 0.6,
    chunk: tuple[int, int] = (5, 10),
    most: int = 4,
    stretch: float = 1.5,
    free: float = 0.12,
) -> Rollouts:
    """Plain sampling; a group without a right rollout is sampled once more with pieces of its demonstration in the
    canvas, and what is right then takes the place of up to `most` of its rollouts.

    The demonstration is cut into chunks of random lengths from chunk[0] to chunk[1] tokens (a shorter last one is
    dropped). Each rollout draws its share from low to high; so many of the chunks, rounded up and drawn by chance,
    stand in its canvas from the beginning, in order. The last `free` of the canvas keeps none of them; if the
    demonstration is shorter than the rest, gaps are stretched, at most by the factor `stretch`. The column `given`
    marks these tokens. A demonstration shorter than chunk[0] gives nothing.
    """
    if not 0 <= low <= high <= 1 or not 1 <= chunk[0] <= chunk[1]:
        raise RecipeError(
            f"shares from {low} to {high} and chunks of {chunk[0]} to {chunk[1]} tokens are no ranges",
            where="rollout.strategy.inpainted",
            hint="low=0.2 high=0.6 chunk=[5,10]",
        )
    plain = policy.rollout(prompts, seeds, sampling, entropy=entropy)
    plain = plain.with_columns(given=torch.zeros_like(plain["mask"]))
    right = _right(plain, prompts, verify)
    groups = plain["groups"].tolist()
    failed = [g for g in range(len(prompts)) if not any(r for r, own in zip(right, groups, strict=True) if own == g)]
    record("inpaint/failed_share", len(failed) / max(len(prompts), 1))
    solutions = {g: None if reference is None else reference(prompts[g].row) for g in failed}
    again = [g for g, text in solutions.items() if text is not None]
    if not again:
        return plain
    fresh = [[stream(seed, "inpaint") for seed in seeds[g]] for g in again]
    width, kept = sampling.max_tokens, int(free * sampling.max_tokens)
    rows = []
    for g, own in zip(again, fresh, strict=True):
        tokens = policy.encode_completion(solutions[g])
        for seed in own:
            chance = Random(stream(seed, "chunks"))
            share = chance.uniform(low, high)
            chunks = reveal(cut(min(len(tokens), width - kept), chunk, chance), share, chance)
            rows.append(lay_out(tokens, chunks, width, width - kept, stretch))
    given = torch.tensor(rows)
    told = policy.rollout([prompts[g] for g in again], fresh, sampling, entropy=entropy, given=given)
    good = _right(told, [prompts[g] for g in again], verify)
    record("inpaint/told_share", float((given >= 0).double().mean()))
    record("inpaint/right_share", sum(good) / len(good))
    return _swap(plain, told, again, good, [own[0] for own in fresh], most)


def _right(rollouts: Rollouts, prompts: Sequence[Prompt], verify: Callable[..., bool]) -> list[bool]:
    pairs = zip(rollouts.texts, rollouts["groups"].tolist(), strict=True)
    return [verify(text, prompts[g].row) for text, g in pairs]


def cut(length: int, chunk: tuple[int, int], chance: Random) -> list[tuple[int, int]]:
    """Chunks (start, stop) of random lengths that follow each other; what is left at the end may be shorter than a
    chunk, and is in none.
    """
    out: list[tuple[int, int]] = []
    start = 0
    while True:
        size = min(chance.randint(*chunk), length - start)
        if size < chunk[0]:
            return out
        out.append((start, start + size))
        start += size


def reveal(chunks: Sequence[tuple[int, int]], share: float, chance: Random) -> list[tuple[int, int]]:
    """A share of the chunks, rounded up, by chance and in order."""
    hidden = int(len(chunks) * (1.0 - share))
    return sorted(chance.sample(chunks, len(chunks) - hidden))


def lay_out(
    tokens: Sequence[int], chunks: Sequence[tuple[int, int]], width: int, room: int, stretch: float
) -> list[int]:
    """A canvas of `width` places with chunks of the tokens in its first `room`, -1 elsewhere. Gaps between chunks grow
    as far as there is room for all tokens so stretched, at most by the factor `stretch`.
    """
    factor = min(max(room / max(len(tokens), 1), 1.0), stretch)
    out = [-1] * width
    end = before = 0
    for start, stop in chunks:
        end += int((start - before) * factor)
        own = tokens[start:stop][: max(room - end, 0)]
        out[end : end + len(own)] = own
        end, before = end + stop - start, stop
    return out


def _swap(
    plain: Rollouts, told: Rollouts, again: Sequence[int], good: Sequence[bool], seeds: Sequence[int], most: int
) -> Rollouts:
    """`plain` with up to `most` good rows of `told`, by chance, in place of the first ones of each group in `again`."""
    index = list(range(len(plain)))
    groups, own = plain["groups"].tolist(), told["groups"].tolist()
    for number, (g, seed) in enumerate(zip(again, seeds, strict=True)):
        found = [i for i, at in enumerate(own) if at == number and good[i]]
        Random(stream(seed, "order")).shuffle(found)
        places = [i for i, at in enumerate(groups) if at == g]
        for place, i in zip(places[:most], found, strict=False):
            index[place] = len(plain) + i
    record("inpaint/swapped_share", sum(i >= len(plain) for i in index) / len(index))
    renumbered = torch.tensor(list(again), device=told["groups"].device)[told["groups"]]
    told = told.with_columns(groups=renumbered)
    both = replace(
        plain,
        columns={name: torch.cat([plain[name], told[name]]) for name in plain.columns},
        texts=[*plain.texts, *told.texts],
        media={name: torch.cat([plain.media[name], told.media[name]]) for name in plain.media},
    )
    return both.rows(torch.tensor(index, device=renumbered.device))
