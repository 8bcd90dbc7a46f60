"""MODPO: a preference for one objective, with a margin for what the others make of the pair (arXiv:2310.03708)."""

import torch
from torch import Tensor

from coterie.columns import component
from coterie.errors import RewardError
from coterie.metrics import record
from coterie.objectives.pairs import Length, Link, contrast, link_loss, live_decisions, log_ratios, sides
from coterie.pieces import loss


@loss(paper="arXiv:2310.03708", whole_groups=True, min_group=2)
def modpo(
    logp: Tensor,
    logp_ref: Tensor,
    components: dict[str, Tensor],
    reward_weights: dict[str, float],
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    preference: str = "preference",
    beta: float = 0.1,
    link: Link = "sigmoid",
    length: Length = "sum",
) -> Tensor:
    """The loss of each rollout's group, at x = (beta h - sum_k w_k (m_best,k - m_worst,k)) / w_0. [B]

    `preference` names the component that says which rollouts are best and worst; w_0 is its reward weight. The other
    components with weight are the margins m_k, each by its weight w_k; where one was not given it counts 0. h is the
    difference of the log-ratios to the reference, by `length` of their sums or means. link: "sigmoid" -log sigmoid(x),
    "hinge" max(0, 1 - x), "ipo" (x - 1/2)^2. Margins are detached. 0 for a group without a preference.
    """
    order = component(components, preference, "modpo").to(logp.dtype)
    own = reward_weights.get(preference, 0.0)
    if own <= 0:
        raise RewardError(
            f"modpo divides by the weight of '{preference}', which is {own:g}", hint=f"rewards.weights.{preference}=0.5"
        )
    live = live_decisions(mask, weights)
    two = sides(order, live.any(-1) & ~order.isnan(), groups)
    h = contrast(log_ratios(logp, logp_ref, live, length), two, groups)
    margin = torch.zeros_like(h)
    for name, values in components.items():
        if name != preference and reward_weights.get(name, 0.0):
            margin = margin + reward_weights[name] * contrast(values.to(h.dtype).nan_to_num(0.0), two, groups)
    x = (beta * h - margin) / own
    record("preference/margin", x, two.both)
    record("preference/accuracy", x > 0, two.both)
    record("modpo/other_margin", margin, two.both)
    value = link_loss(x, 1.0, link)
    return torch.where(two.both, value, torch.zeros_like(value))
