"""The preference of a group's best over its worst as a term beside another objective (GEPO, arXiv:2505.12723)."""

from torch import Tensor

from coterie.objectives.losses.dpo import dpo
from coterie.objectives.pairs import Length, Link
from coterie.pieces import term


@term(paper="arXiv:2505.12723", whole_groups=True, min_group=2)
def preference(
    logp: Tensor,
    logp_ref: Tensor,
    rewards: Tensor,
    groups: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.01,
    beta: float = 0.1,
    link: Link = "sigmoid",
    smoothing: float = 0.0,
    length: Length = "sum",
    spread: float = 1.0,
) -> Tensor:
    """coef times the loss `dpo` of each rollout's group, added to the loss. [B]

    beta, link, smoothing and length are those of `dpo`. Groups of equivalent right answers against wrong ones: the mean
    log-ratio of all of the best, less that of all of the worst. spread: times the variance of the log-ratios among the
    best, so that equivalent answers stay equally likely.
    """
    value = dpo(
        logp, logp_ref, rewards, groups, weights, mask,
        beta=beta, link=link, smoothing=smoothing, length=length, spread=spread,
    )  # fmt: skip
    return coef * value
