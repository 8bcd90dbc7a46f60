"""DiffusionNFT's loss: towards good samples, and away from bad ones by the mirrored policy (arXiv:2509.16117)."""

from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record
from coterie.pieces import loss


@loss(paper="arXiv:2509.16117")
def contrastive_match(
    logp: Tensor,
    logp_old: Tensor,
    mean_gap: Tensor,
    advantages: Tensor,
    step_size: Tensor,
    mask: Tensor,
    *,
    beta: float = 1.0,
    bound: float = 5.0,
    eps: float = 1e-5,
) -> Tensor:
    """bound (r L(v+) + (1 - r) L(v-)) / beta of each decision of `renoised`, to be minimised. [B,T]

    v+ = v_old + beta (v - v_old) and v- = v_old - beta (v - v_old); L(u) = s^2 E(u) / max(s sqrt E(u), eps) with E the
    mean squared error of u and s the noise level (step_size); r = clip(A / (2 bound) + 1/2, 0, 1). The divisor, the
    advantage and v_old are detached; gradient flows through logp and mean_gap, of which E(v+) and E(v-) are made.
    """
    level = finite_or_zero(step_size, mask)
    error, old = -finite_or_zero(logp, mask), -finite_or_zero(logp_old, mask).detach()
    gap = finite_or_zero(mean_gap, mask)
    share = (finite_or_zero(per_decision(advantages, mask), mask).detach() / (2 * bound) + 0.5).clamp(0.0, 1.0)

    def scaled(side: float) -> Tensor:
        square = ((1 - side) * old + side * error - side * (1 - side) * gap).clamp_min(0.0)
        return level**2 * square / (level * square.detach().sqrt()).clamp_min(eps)

    towards, away = scaled(beta), scaled(-beta)
    record("match/error", error)
    record("match/share", share)
    return bound * (share * towards + (1 - share) * away) / beta
