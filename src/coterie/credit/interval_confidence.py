"""URPA's confidence: a group whose intervals scatter teaches less (arXiv:2508.06317)."""

from collections.abc import Mapping

from torch import Tensor

from coterie.columns import component, in_shape_of
from coterie.metrics import record
from coterie.pieces import credit
from coterie.reductions import group_sum


@credit(paper="arXiv:2508.06317")
def interval_confidence(
    advantages: Tensor,
    groups: Tensor,
    components: Mapping[str, Tensor],
    *,
    start: str = "start",
    end: str = "end",
    width: float = 1.0,
) -> Tensor:
    """Advantages times exp(-(var start + var end) / width^2), the group's confidence. [B] or [B,T] -> the same

    start, end: the reward components that hold the interval an answer names; answers that name none (NaN, or the end
    comes first) are left out of the variances, which divide by the number of the others. width: the scatter, in the
    unit of the intervals, at which the confidence is 1/e. A group in which at most one answer names an interval has 1.
    """
    first = component(components, start, "interval_confidence").to(advantages.dtype)
    last = component(components, end, "interval_confidence").to(advantages.dtype)
    named = last >= first  # false for NaN
    count = group_sum(named.to(first.dtype), groups).clamp_min(1.0)
    scatter = first.new_zeros(first.shape)
    for x in (first.masked_fill(~named, 0.0), last.masked_fill(~named, 0.0)):
        mean = group_sum(x, groups) / count
        scatter = scatter + group_sum(((x - mean) ** 2).masked_fill(~named, 0.0), groups) / count
    confidence = (-scatter / width**2).exp()
    record("interval/confidence", confidence)
    return advantages * in_shape_of(confidence, advantages)
