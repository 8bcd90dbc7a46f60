"""SRPO: a policy whose answers need little improvement, and that improves answers it is shown (arXiv:2406.01660)."""

import torch
from torch import Tensor

from coterie.columns import component
from coterie.metrics import record
from coterie.objectives.pairs import live_decisions, log_ratios, mean_over, sides
from coterie.pieces import loss


@loss(paper="arXiv:2406.01660", whole_groups=True, min_group=2)
def srpo_robust(
    logp: Tensor,
    logp_ref: Tensor,
    rewards: Tensor,
    components: dict[str, Tensor],
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    revises: str | None = "revises",
) -> Tensor:
    """(1 - alpha) policy + alpha revision, of each rollout's group, to be minimised. [B]

    rho(a) is log pi/ref of answer a, rho(a|b) that of a as an improvement on b, summed over decisions; w is the
    group's best by reward, l its worst. policy = (1/2 - beta/2 (rho(w|l) - rho(l|w) + rho(w) - rho(l)))^2; revision =
    (1/2 - beta (rho(w|l) - rho(l|l)))^2 / 2 + (1/2 + beta (rho(l|w) - rho(w|w)))^2 / 2. The component named `revises`
    says what a rollout was shown: 1 the best, -1 the worst, 0 nothing. None: nobody was shown anything. What is not
    there counts 0, and of several the mean. 0 for a group whose rewards are all equal.
    """
    live = live_decisions(mask, weights)
    two = sides(rewards, live.any(-1), groups)
    rho = log_ratios(logp, logp_ref, live, "sum")
    shown = torch.zeros_like(rho) if revises is None else component(components, revises, "srpo_robust").to(rho.dtype)

    def of(side: Tensor, sign: float) -> Tensor:
        return mean_over(rho, side & (shown.sign() == sign), groups)

    w_by_l, l_by_l, l_by_w, w_by_w = of(two.best, -1), of(two.worst, -1), of(two.worst, 1), of(two.best, 1)
    plain = of(two.best, 0) - of(two.worst, 0)
    policy = (0.5 - 0.5 * beta * (w_by_l - l_by_w + plain)) ** 2
    revision = 0.5 * (0.5 - beta * (w_by_l - l_by_l)) ** 2 + 0.5 * (0.5 + beta * (l_by_w - w_by_w)) ** 2
    record("preference/margin", beta * plain, two.both)
    record("preference/accuracy", plain > 0, two.both)
    record("srpo/revision_margin", beta * (w_by_l - l_by_l), two.both)
    value = (1 - alpha) * policy + alpha * revision
    return torch.where(two.both, value, torch.zeros_like(value))
