"""From rollouts to masked inputs: which places each hides, which log-probs are read off it, and their weights.

Every likelihood is a weighted sum over masked inputs, logp[b,t] = sum_n weight[n,t] log p(token t | input n). A row's
decided places are those of its mask; other places (behind the end) are hidden in every estimate, as if not there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from coterie.rollout.engines.sampling import uniform

_PROMPT = 2**40
"""Positions of a seed's numbers from here on are for prompts."""
_EPOCH = 0x2545F4914F6CDD1D


class Inputs(NamedTuple):
    """N masked inputs of B rollouts, C places each."""

    row: Tensor
    """[N] the rollout"""
    hidden: Tensor
    """[N,C] bool: places that the input hides"""
    weight: Tensor
    """[N,C] float64: weight of each place's log-prob, 0 where it is not read off this input"""


def trajectory(decided: Tensor, canvas: Tensor, unmasked: Tensor, mask_id: int) -> Inputs:
    """The inputs that the rollout itself saw: one a forward pass that made a decision. All arguments [B,C]."""
    most = int(unmasked.max()) + 1 if unmasked.numel() else 0
    step = torch.arange(most, device=canvas.device)
    asked = decided.unsqueeze(1) & (unmasked.unsqueeze(1) == step.view(1, -1, 1))
    row, at = asked.any(-1).nonzero(as_tuple=True)
    hidden = (unmasked[row] >= at.unsqueeze(-1)) | (canvas[row] == mask_id)
    return Inputs(row, hidden, asked[row, at].double())


def one_step(decided: Tensor) -> Inputs:
    """One input a rollout, that hides the whole canvas (arXiv:2504.12216). decided: [B,C]"""
    return Inputs(torch.arange(len(decided), device=decided.device), torch.ones_like(decided), decided.double())


def elbo(decided: Tensor, noise: Tensor, masks: int, coupled: bool) -> Inputs:
    """Random masks, such that the sum over places is an unbiased estimate of the bound on a rollout's log-likelihood.

    The bound, over the L decided places of a rollout, is the mean over l = 1..L and all sets M of l of them of
    L/l sum_{t in M} log p(t | the others). A draw takes a uniform l and a uniform set. Draws of one rollout are spread:
    l of draw k comes from u + k/masks modulo 1. coupled: l = L, which has one set, is evaluated once, with weight 1/L;
    l < L are drawn in pairs of a set and its complement, so that each place is read once a pair, none is left out, and
    the estimate of each decision varies less at equal cost (arXiv:2506.20639 couples masks so).
    decided [B,C], noise [B] int64 seeds.
    """
    width = decided.shape[1]
    total = decided.sum(-1)
    k = torch.arange(masks, device=decided.device)
    start = uniform(noise, 0).unsqueeze(-1)
    spread = (start + k / masks) % 1.0
    top = (total - 1).clamp_min(1) if coupled else total.clamp_min(1)
    drawn = (spread * top.unsqueeze(-1)).long().clamp_max(top.unsqueeze(-1) - 1) + 1  # [B,K]
    position = 1 + k.view(1, -1, 1) * width + torch.arange(width, device=decided.device)
    chance = uniform(noise.view(-1, 1, 1), position).masked_fill(~decided.unsqueeze(1), 2.0)
    rank = chance.argsort(-1).argsort(-1)
    inside = (rank < drawn.unsqueeze(-1)) & decided.unsqueeze(1)  # [B,K,C]
    size, share = total.view(-1, 1, 1).double(), 1.0 / masks
    chosen = drawn.unsqueeze(-1).double()
    if not coupled:
        sets, weights = inside, inside * (size / chosen * share)
    else:
        outside = ~inside & decided.unsqueeze(1)
        half = 0.5 * share * (size - 1).clamp_min(0) / size.clamp_min(1)
        pair = [
            (inside, inside * (half * size / chosen)),
            (outside, outside * (half * size / (size - chosen).clamp_min(1))),
        ]
        whole = decided.unsqueeze(1)
        sets = torch.cat([whole, *(s for s, _ in pair)], 1)
        weights = torch.cat([whole / size.clamp_min(1), *(w for _, w in pair)], 1)
    row, draw = (weights != 0).any(-1).nonzero(as_tuple=True)
    return Inputs(row, sets[row, draw] | ~decided[row], weights[row, draw])


def hide_prompt(tokens: Tensor, noise: Tensor, share: float, mask_id: int) -> Tensor:
    """Prompt tokens [N,P] with a random share of each row's replaced by the mask token. noise [N]"""
    if share == 0.0:
        return tokens
    place = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(uniform(noise.unsqueeze(-1), _PROMPT + place) < share, mask_id, tokens)


def fresh(noise: Tensor, epoch: int) -> Tensor:
    """Seeds for another pass over the same rollouts. [B] int64"""
    return noise + torch.full_like(noise, epoch) * _EPOCH  # wraps, as it may
