"""How far the policy moved from the one that sampled, step by step (SAGE-GRPO, arXiv:2603.21872)."""

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.pieces import term


@term(paper="arXiv:2603.21872")
def step_kl(logp: Tensor, logp_old: Tensor, mask: Tensor, *, coef: float = 0.1) -> Tensor:
    """coef * (logp_old - logp) of every decision, added to the loss. [B,T]. Gradient flows through logp.

    Its mean over what was sampled estimates KL(sampler || policy) without bias, and so does its gradient, which holds
    the policy at what it did; single values may be below 0. Right after sampling it is 0, its gradient's mean too.
    """
    value = finite_or_zero(logp_old - logp, mask)
    record("kl/step", value)
    return coef * value
