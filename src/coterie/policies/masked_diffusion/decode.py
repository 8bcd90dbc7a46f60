"""Filling a canvas: draw at masked places, keep the best, again and again; every kept token with its log-prob."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from coterie.policies.masked_diffusion.learned import Actions, Schedule, count, temperature
from coterie.policies.masked_diffusion.schedule import plan, scores
from coterie.rollout.engines.sampling import draw, uniform
from coterie.rollouts import Sampling
from coterie.sections import Unmask

Forward = Callable[[Tensor, Tensor], Tensor]
"""(rows [N], canvas [N,C]) -> logits [N,C,V], in which the mask token is impossible"""


class Trace(NamedTuple):
    """What was decided where and when. All are [B,C]."""

    canvas: Tensor
    """tokens; the mask token where none was put"""
    unmasked: Tensor
    """the row's forward pass that put the token there, from 0; -1 where it was given, or none was put"""
    logp: Tensor
    """float32 (float64 for a float64 model); 0 where nothing was decided"""
    entropy: Tensor
    actions: Actions | None = None
    """of a learned schedule"""


_ACTIONS = 2**41
"""Positions of a seed's numbers from here on are for a learned schedule."""


@torch.no_grad()
def decode(
    forward: Forward,
    canvas: Tensor,
    seeds: Tensor,
    sampling: Sampling,
    unmask: Unmask,
    mask_id: int,
    eos_id: int | None,
    learned: Schedule | None = None,
) -> Trace:
    """Fill the masked places of `canvas` [B,C]; the others are given. Rows are independent of each other.

    A row's random numbers depend on its seed [B], the pass and the place alone. Unless unmask.after_end, a row ends
    where an EOS stands with no masked place before it: what is behind stays masked. A `learned` schedule decides before
    each pass of a row on its temperature and its number of places.
    """
    canvas = canvas.clone()
    width = canvas.shape[1]
    unmasked = torch.full_like(canvas, -1)
    passes = canvas.new_zeros(len(canvas))
    logp = entropy = None
    steps = plan(width, unmask)
    actions = None if learned is None else _none(learned, len(canvas), len(steps))
    for step in steps:
        block = slice(step.start, step.stop)
        open_ = (canvas == mask_id) & ~_ended(canvas, mask_id, eos_id, unmask.after_end).unsqueeze(-1)
        if step.number == 0:
            masked = open_[:, block].sum(-1)
        left = open_[:, block].sum(-1)
        if unmask.threshold is not None or learned is not None:
            planned = left.clamp_max(1)
        else:
            planned = step.count(masked, left).minimum(left)
        rows = (planned > 0).nonzero().squeeze(-1)
        if not len(rows):
            continue
        many = planned[rows]
        factor = None
        if learned is not None and actions is not None:
            now = passes[rows]
            chance = torch.stack([uniform(seeds[rows], _ACTIONS + 2 * now + field) for field in (0, 1)], -1)
            value, density = learned.draw(now, chance, sampling.temperature == 0.0)
            actions.value[rows, now], actions.logp[rows, now] = value, density
            many, factor = count(value, left[rows], step.of - step.number), temperature(value)
        here = torch.zeros_like(open_[rows])
        here[:, block] = open_[rows][:, block]
        row, place = here.nonzero(as_tuple=True)
        logits = forward(rows, canvas[rows])[row, place]
        position = (passes[rows][row] * width + place) * 2
        heated = logits if factor is None else logits / factor[row].unsqueeze(-1).to(logits)
        tokens, found, spread = draw(heated, sampling, uniform(seeds[rows][row], position), entropy=True)
        assert spread is not None
        if logp is None or entropy is None:
            logp, entropy = (found.new_zeros(canvas.shape) for _ in range(2))
        score, proposed = scores(logits, tokens, unmask.order, uniform(seeds[rows][row], position + 1))
        if eos_id is not None:
            score = torch.where(proposed == eos_id, score * step.gamma, score)
        table = score.new_full(here.shape, -1.0).masked_scatter(here, score)
        if unmask.threshold is not None:
            many = many.maximum((table >= unmask.threshold).sum(-1))
        rank = table.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        kept = (rank < many.unsqueeze(-1))[row, place]
        at = (rows[row[kept]], place[kept])
        canvas[at], logp[at], entropy[at] = tokens[kept], found[kept], spread[kept]
        unmasked[at] = passes[at[0]]
        passes[rows] += 1
    if logp is None or entropy is None:  # everything was given
        logp, entropy = (torch.zeros(canvas.shape, device=canvas.device) for _ in range(2))
    return Trace(canvas, unmasked, logp, entropy, actions)


def _none(learned: Schedule, rows: int, passes: int) -> Actions:
    """No action yet, for each pass that there may be."""
    like = learned.weight.detach()
    return Actions(like.new_zeros(rows, passes, like.shape[1]), like.new_zeros(rows, passes))


def _ended(canvas: Tensor, mask_id: int, eos_id: int | None, after_end: bool) -> Tensor:
    """Rows in which an EOS stands and no place before it is masked. [B] bool"""
    if after_end or eos_id is None:
        return torch.zeros_like(canvas[:, 0], dtype=torch.bool)
    place = torch.arange(canvas.shape[1], device=canvas.device)
    end = torch.where(canvas == eos_id, place, canvas.shape[1]).amin(-1)
    hidden = torch.where(canvas == mask_id, place, canvas.shape[1]).amin(-1)
    return end < hidden


def before_end(canvas: Tensor, eos_id: int | None) -> Tensor:
    """Places up to and including the first EOS. [B,C] bool"""
    if eos_id is None:
        return torch.ones_like(canvas, dtype=torch.bool)
    ends = (canvas == eos_id).long()
    return ends.cumsum(-1) - ends == 0
