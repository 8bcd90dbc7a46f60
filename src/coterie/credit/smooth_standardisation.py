"""DCPO's smooth advantage standardisation: a prompt's rewards are seen against all its visits (arXiv:2509.02333)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_is_constant, group_mean, group_std


@credit(paper="arXiv:2509.02333", min_group=2)
class smooth_standardisation:
    """The group's z-score and the one under all visits of its prompt so far, blended; the smaller blend counts. [B]

    z_N is over the group, z_T over every reward the prompt has had, this visit's included; on visit i the advantage is
    z_T / i + (1 - 1/i) z_N or z_N / i + (1 - 1/i) z_T, whichever is nearer 0. Neither has an eps: where the standard
    deviation is 0 the score is 0. So a group of equal rewards still learns if the prompt once had others, and the first
    visit is GRPO. ddof: of a visit's standard deviation. Memory: mean, standard deviation and visits of each prompt
    that has an index; of two groups of one prompt in a batch, each is compared with the visits before, one remembered.
    """

    def __init__(self, *, ddof: int = 1) -> None:
        self.ddof = ddof
        self.mean, self.std, self.visits = (torch.zeros(0, dtype=torch.float64) for _ in range(3))

    def __call__(self, rewards: Tensor, groups: Tensor, prompt_index: Tensor) -> Tensor:
        known = (prompt_index >= 0).cpu()
        at = prompt_index.cpu().clamp_min(0)
        self._make_room(int(at.max()) + 1)
        wide = rewards.double()
        flat = group_is_constant(wide, groups)  # there the mean is the value and the spread 0, to the last bit
        mean = torch.where(flat, wide, group_mean(wide, groups))
        std = torch.where(flat, 0.0, group_std(wide, groups, self.ddof))
        before, spread, visits = ((x[at] * known).to(wide) for x in (self.mean, self.std, self.visits))
        visit = visits + 1
        share = 1 / visit
        total = before + share * (mean - before)
        variance = (1 - share) * (spread**2 + (before - total) ** 2) + share * (std**2 + (mean - total) ** 2)
        now, ever = _score(wide, mean, std), _score(wide, total, variance.sqrt())
        one, two = share * ever + (1 - share) * now, share * now + (1 - share) * ever
        for memory, new in ((self.mean, total), (self.std, variance.sqrt()), (self.visits, visit)):
            memory[at[known]] = new.cpu()[known]
        record("dcpo/revived_share", ((std == 0) & (variance > 0)).double())
        return torch.where(one.abs() < two.abs(), one, two).to(rewards.dtype)

    def _make_room(self, size: int) -> None:
        more = size - len(self.mean)
        if more > 0:
            grow = torch.zeros(more, dtype=torch.float64)
            self.mean, self.std, self.visits = (torch.cat([x, grow]) for x in (self.mean, self.std, self.visits))

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.clone(), "std": self.std.clone(), "visits": self.visits.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.std, self.visits = (state[name].clone() for name in ("mean", "std", "visits"))


def _score(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return torch.where(std > 0, (x - mean) / torch.where(std > 0, std, 1.0), 0.0)
