"""Many steps of the reference as the target of one: distillation beside a reward (Flash-DMD, arXiv:2511.20549)."""

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.pieces import term


@term(paper="arXiv:2511.20549")
def step_distillation(fine_gap: Tensor, mask: Tensor, *, coef: float = 0.1, substeps: int = 4) -> Tensor:
    """coef * |v - v_fine|^2 of every decision, a mean over its numbers, added to the loss. [B,T]. Gradient flows
    through fine_gap, in which v_fine is a number.

    v_fine: the velocity that leads in one step to where the reference's ODE leads in `substeps`, from the state that
    was sampled. With 1 it is the reference's own velocity, and the term a KL to it without the steps' factors.
    """
    value = finite_or_zero(fine_gap, mask)
    record("step_distillation/gap", value)
    return coef * value
