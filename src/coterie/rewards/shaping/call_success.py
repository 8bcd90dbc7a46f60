"""THOR's reward of a step: a tool call that was made anew is worth something if it ran (arXiv:2509.13761)."""

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import shaping


@shaping(paper="arXiv:2509.13761")
def call_success(rewards: Tensor, ran: Tensor) -> Tensor:
    """1 for a call made anew that ran, 0 for one that did not; rollouts that are none keep their reward. [B] -> [B]"""
    retried = ran >= 0
    record("retries/share", retried.to(rewards.dtype))
    if bool(retried.any()):
        record("retries/ran_share", (ran > 0).to(rewards.dtype), retried)
    return torch.where(retried, (ran > 0).to(rewards.dtype), rewards)
