"""AsymRE: REINFORCE with the baseline lowered, so that good rollouts weigh more than bad ones (arXiv:2509.24203)."""

from torch import Tensor

from coterie.pieces import credit


@credit(paper="arXiv:2509.24203")
def baseline_shift(advantages: Tensor, *, delta: float = 0.1) -> Tensor:
    """Advantage plus delta: the baseline is delta lower. [B] or [B,T] -> the same

    The same as adding an imitation term delta * logp on every sampled decision, so groups of equal reward still pull
    the policy towards their own rollouts. delta = 0 changes nothing.
    """
    return advantages + delta
