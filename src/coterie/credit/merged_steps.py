"""SALT: steps that several episodes of a group share get the mean of their advantages (arXiv:2510.20022)."""

import torch
from torch import Tensor

from coterie.columns import per_decision
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_count, group_mean, turn_exists


@credit(paper="arXiv:2510.20022", shape="B T")
def merged_steps(
    advantages: Tensor,
    groups: Tensor,
    tokens: Tensor,
    state_key: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    history: int = 0,
    actions: bool = True,
) -> Tensor:
    """The mean advantage of all turns of the group that are one edge of its graph of states. [B] or [B,T] -> [B,T]

    Turns are one edge where state, action and next state agree, and so do the `history` actions before. Actions agree
    where their tokens do; actions=False compares states alone, for policies that think before they act. state_key
    [B,U] names states, a negative one is of none; behind the last turn all is one state. Of an advantage that differs
    within a turn its mean counts. Decisions in no turn, and turns that are shared with none, keep what they have.
    """
    out = torch.where(mask, per_decision(advantages, mask), advantages.new_zeros(()))
    rows, width = state_key.shape
    known = turn_exists(turn, mask, width) & (state_key >= 0)
    if not bool(known.any()):
        return out
    inside = mask & (turn >= 0)
    pair = (torch.arange(rows, device=turn.device).unsqueeze(-1) * width + turn)[inside]
    count = out.new_zeros(rows * width).index_add(0, pair, torch.ones_like(out[inside]))
    mean = out.new_zeros(rows * width).index_add(0, pair, out[inside]) / count.clamp_min(1.0)
    action = _actions(tokens[inside], pair, count).view(rows, width) if actions else torch.zeros_like(state_key)
    after = torch.nn.functional.pad(torch.where(known, state_key, -2)[:, 1:], (0, 1), value=-2)
    past = [torch.nn.functional.pad(action, (k, 0), value=-1)[:, :width] for k in range(1, history + 1)]
    parts = torch.stack([groups.unsqueeze(-1).expand_as(state_key), state_key, action, after, *past], -1)
    edge = torch.unique(parts[known], dim=0, return_inverse=True)[1]
    shared = group_count(edge, out.dtype) > 1
    record("salt/shared_share", shared.to(out.dtype))
    values = mean.view(rows, width)[known]
    merged = torch.full_like(mean.view(rows, width), torch.nan)
    merged = merged.masked_scatter(known, torch.where(shared, group_mean(values, edge), torch.nan))
    new = merged.gather(1, torch.where(inside, turn, 0))
    return torch.where(inside & ~new.isnan(), new, out)


def _actions(tokens: Tensor, pair: Tensor, count: Tensor) -> Tensor:
    """Numbers that turns share where their decisions are the same tokens; turns are given in order of row. [B * U]"""
    order = pair.argsort(stable=True)
    size = count.long()
    place = torch.arange(len(order), device=pair.device) - (size.cumsum(0) - size)[pair[order]]
    spelled = torch.full((len(count), int(size.max())), -1, dtype=torch.long, device=pair.device)
    spelled[pair[order], place] = tokens[order].long()
    return torch.unique(spelled, dim=0, return_inverse=True)[1]
