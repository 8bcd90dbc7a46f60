"""MPO: preference, quality and generation in one loss, before online learning (arXiv:2411.10442)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from coterie.metrics import record
from coterie.objectives.pairs import contrast, live_decisions, log_ratios, mean_over, sides
from coterie.pieces import loss
from coterie.reductions import masked_mean


@loss(paper="arXiv:2411.10442", whole_groups=True, min_group=2)
class mpo:
    """w_p DPO + w_q BCO + w_g NLL of each rollout's group: which is better, whether each is good, and how to say it.

    preference, quality, generation: the weights. With rho = log pi/ref summed over a rollout: the preference is -log
    sigmoid(beta (rho_best - rho_worst)); the quality -log sigmoid(beta rho_best - d) - log sigmoid(d - beta rho_worst),
    where d is the mean of beta rho over all best and worst rollouts of the steps before this one, detached; generation
    is the mean negative logp of the best's decisions. Best and worst are those of the largest and smallest reward of
    the group; where several tie, each part takes their mean. 0 for a group whose rewards are all equal.
    """

    def __init__(
        self, *, preference: float = 0.8, quality: float = 0.2, generation: float = 1.0, beta: float = 0.1
    ) -> None:
        self.preference, self.quality, self.generation, self.beta = preference, quality, generation, beta
        self.shift = 0.0
        self.seen = 0.0
        self.new = [0.0, 0.0]
        """Sum and number of the implicit rewards of the present step, which count from the next one on."""
        self.step = -1

    def __call__(
        self,
        logp: Tensor,
        logp_ref: Tensor,
        rewards: Tensor,
        groups: Tensor,
        weights: Tensor,
        mask: Tensor,
        step: int,
    ) -> Tensor:
        live = live_decisions(mask, weights)
        two = sides(rewards, live.any(-1), groups)
        reward = self.beta * log_ratios(logp, logp_ref, live, "sum")
        shift = self._shift(reward, two.best | two.worst, step)
        margin = contrast(reward, two, groups)
        good = mean_over(-logsigmoid(reward - shift), two.best, groups)
        bad = mean_over(-logsigmoid(shift - reward), two.worst, groups)
        nll = mean_over(-masked_mean(logp, live), two.best, groups)
        record("preference/margin", margin, two.both)
        record("preference/accuracy", margin > 0, two.both)
        record("mpo/shift", shift)
        record("mpo/nll", nll, two.both)
        value = -self.preference * logsigmoid(margin) + self.quality * (good + bad) + self.generation * nll
        return torch.where(two.both, value, torch.zeros_like(value))

    def _shift(self, reward: Tensor, counted: Tensor, step: int) -> float:
        """The mean up to the step before, so that it is the same however an update is cut."""
        if step != self.step:
            total = self.shift * self.seen + self.new[0]
            self.seen += self.new[1]
            self.shift = total / self.seen if self.seen else 0.0
            self.step, self.new = step, [0.0, 0.0]
        self.new[0] += float(reward.detach()[counted].sum())
        self.new[1] += float(counted.sum())
        return self.shift

    def state_dict(self) -> dict[str, Any]:
        return {"shift": self.shift, "seen": self.seen, "new": list(self.new), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shift, self.seen, self.new, self.step = state["shift"], state["seen"], list(state["new"]), state["step"]
