"""KL to the reference policy as a loss term (k1, k2, k3; DeepSeekMath uses k3, arXiv:2402.03300)."""

from typing import Literal

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.kl import kl_estimate
from coterie.metrics import record
from coterie.objectives.ratios.token import token
from coterie.pieces import term


@term(paper="arXiv:2402.03300")
def kl(
    logp: Tensor,
    logp_ref: Tensor,
    logp_old: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.04,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    importance: bool = False,
) -> Tensor:
    """coef * KL estimate of every decision, added to the loss. [B,T]. Gradient flows through logp.

    k2 has the reverse KL's gradient on policy, k3 (the paper's) a forward-leaning one, k1 none in expectation: do not
    use k1 here. importance: multiply the estimate by the ratio (with its gradient), which makes k1 and k3's expected
    gradient the reverse KL's and corrects for stale samples. Over several decisions this is the sum of their own
    KLs, not the KL of whole sequences: for that put k1 in the reward with returns to go.
    """
    value = kl_estimate(finite_or_zero(logp - logp_ref, mask), estimator)
    record("kl/ref", value)
    if importance:
        value = value * token(logp, logp_old, mask)
    return coef * value
