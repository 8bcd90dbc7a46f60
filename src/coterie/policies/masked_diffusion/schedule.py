"""How many places each step unmasks, in which block, and how much end-of-sequence is held back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.sections import Unmask


@dataclass(frozen=True)
class Step:
    """One denoising step. It unmasks places from `start` to `stop` (exclusive) of the canvas."""

    start: int
    stop: int
    number: int
    """of the step in its block, from 0"""
    of: int
    """steps of its block"""
    most: int | None
    """places it unmasks where steps ascend; a block's last step takes what is left. None: equal shares"""
    gamma: float
    """factor on the score of EOS"""

    def count(self, masked: Tensor, left: Tensor) -> Tensor:
        """Places to unmask of rows with `masked` places at the beginning of the block and `left` now. [N] -> [N]"""
        if self.most is None:
            return masked // self.of + (self.number < masked % self.of)
        return left if self.number == self.of - 1 else left.clamp_max(self.most)


def plan(width: int, unmask: Unmask) -> list[Step]:
    """The steps that fill a canvas of `width` places.

    uniform: `blocks` blocks of about equal size, `steps` spread over them. ascending (arXiv:2509.23924): step i unmasks
    2^i places and the last what is left; of several blocks the last ones have one step each, the first all others.
    """
    blocks = _ascending(width, unmask) if unmask.growth == "ascending" else _uniform(width, unmask)
    total = sum(len(steps) for _, steps in blocks)
    out, start, index = [], 0, 0
    for size, steps in blocks:
        for number, most in enumerate(steps):
            if unmask.growth == "ascending":
                progress = (2 ** (index + 1) - 1) / 2**total
            else:
                progress = index / (total - 1) if total > 1 else 1.0
            least = 1.0 if unmask.eos_from is None else unmask.eos_from
            out.append(Step(start, start + size, number, len(steps), most, least + (1.0 - least) * progress))
            index += 1
        start += size
    return out


def _uniform(width: int, unmask: Unmask) -> list[tuple[int, list[int | None]]]:
    """(places, one None a step) of each block."""
    steps = width if unmask.steps is None else unmask.steps
    if not unmask.blocks <= steps <= width:
        raise RecipeError(
            f"{steps} steps cannot fill {unmask.blocks} blocks of {width} places together",
            where="unmask",
            hint="unmask.blocks <= unmask.steps <= rollout.max_tokens",
        )
    sizes, counts = _shares(width, unmask.blocks), _shares(steps, unmask.blocks)
    return [(size, [None] * count) for size, count in zip(sizes, counts, strict=True)]


def _ascending(width: int, unmask: Unmask) -> list[tuple[int, list[int | None]]]:
    steps = max(width.bit_length() - 1, 1) if unmask.steps is None else unmask.steps
    if 2**steps > max(width, 2) or unmask.blocks > steps:
        raise RecipeError(
            f"ascending steps unmask 1, 2, 4 … places: {steps} of them and {unmask.blocks} blocks do not fit {width} "
            "places",
            where="unmask",
            hint="unmask.blocks <= unmask.steps <= log2(rollout.max_tokens)",
        )
    first = steps - unmask.blocks + 1
    powers = [list(range(first)), *([power] for power in range(first, steps))]
    blocks: list[tuple[int, list[int | None]]] = [(sum(2**p for p in own), [2**p for p in own]) for own in powers]
    blocks[-1] = (width - sum(size for size, _ in blocks[:-1]), blocks[-1][1])
    return blocks


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def scores(logits: Tensor, drawn: Tensor, order: str, chance: Tensor) -> tuple[Tensor, Tensor]:
    """How soon each place is to be unmasked, in [0,1], and the token it is taken to propose. [N,V], [N] -> [N], [N]

    The probabilities are the model's, at temperature 1. Only `confidence` looks at the token that was drawn; the other
    orders choose a place before its token, so a log-prob is that of the decision exactly. chance: uniforms, for random.
    """
    probs = logits.softmax(-1)
    top, likeliest = probs.topk(min(2, probs.shape[-1]), dim=-1)
    best = likeliest[:, 0]
    if order == "confidence":
        return probs.gather(-1, drawn.unsqueeze(-1)).squeeze(-1), drawn
    if order == "peak":
        return top[:, 0], best
    if order == "margin":
        return top[:, 0] - top[:, -1], best
    if order == "entropy":
        entropy = -torch.special.xlogy(probs, probs).sum(-1)
        return 1.0 - entropy / torch.log(torch.tensor(float(probs.shape[-1]))).to(entropy), best
    return chance.to(probs), best
