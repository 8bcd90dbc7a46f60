"""KL to the reference policy in closed form, for decisions that are Gaussian (Flow-GRPO, arXiv:2505.05470)."""

from typing import Literal

from torch import Tensor

from coterie.columns import finite_or_zero
from coterie.metrics import record
from coterie.pieces import term


@term(paper="arXiv:2505.05470")
def exact_kl(
    kl_ref: Tensor, step_size: Tensor, mask: Tensor, *, coef: float = 0.04, over: Literal["step", "diffusion"] = "step"
) -> Tensor:
    """coef * KL(policy's decision || reference's) of every decision, added to the loss. [B,T]. Gradient flows through
    kl_ref; step_size has none.

    over: "step" is the KL itself, |mean - mean_ref|^2 / (2 std^2); "diffusion" multiplies it by the step's size, which
    is what Flow-GRPO's code came to (it divides by the diffusion coefficient and not by the std). Both are reduced over
    the decision's numbers as its log-prob is, by denoise.logp.

    The estimators of `kl` estimate this from the one state that was sampled: the mean of k1 is this KL; those of k2 and
    k3 are too small by about the number of numbers where log-probs are means over them. This has no sampling noise, and
    its gradient is that of the reverse KL of each step.
    """
    value = finite_or_zero(kl_ref, mask)
    if over == "diffusion":
        value = value * finite_or_zero(step_size, mask)
    record("kl/ref", value)
    return coef * value
