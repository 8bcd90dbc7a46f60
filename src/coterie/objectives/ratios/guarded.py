"""GRPO-Guard's ratio: what denoising steps of different noise have in common (arXiv:2510.22319)."""

from torch import Tensor

from coterie.objectives.ratios.token import LOG_LIMIT
from coterie.pieces import ratio


@ratio(paper="arXiv:2510.22319")
def guarded(logp: Tensor, logp_old: Tensor, mean_gap: Tensor, step_std: Tensor, mask: Tensor) -> Tensor:
    """exp((logp - logp_old + mean_gap) * step_std) of every decision; 1 where masked. [B,T] -> [B,T]

    The log-ratio of a Gaussian step is -mean_gap on average, so an update lowers ratios on the whole and the upper clip
    is hardly reached: adding mean_gap centres it. Its spread is as 1/std, so that steps of low noise are clipped first
    and rule the gradient: multiplying by std makes steps alike. What is left is linear in the shift of the mean.
    Gradient flows through logp and mean_gap. Where the mean has not moved it is 1.
    """
    centred = (logp - logp_old + mean_gap).masked_fill(~mask, 0.0)
    return (centred * step_std.masked_fill(~mask, 0.0)).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
