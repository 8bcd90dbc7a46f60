"""DAPO's dynamic sampling: groups without a learning signal are dropped and replaced (arXiv:2503.14476)."""

from typing import Literal

from torch import Tensor

from coterie.errors import RewardError
from coterie.pieces import filter
from coterie.reductions import group_is_constant


@filter(paper="arXiv:2503.14476")
def dynamic_sampling(
    rewards: Tensor,
    groups: Tensor,
    correct: Tensor | None = None,
    *,
    metric: Literal["auto", "correct", "rewards"] = "auto",
    drop: Literal["equal", "all_correct"] = "equal",
    max_rounds: int = 4,
) -> Tensor:
    """1 for rollouts whose group differs in the metric, 0 for groups all right, all wrong or all equal. [B] -> [B]

    metric: "correct" is the verifier's verdict (a group all correct is dropped even if a length penalty makes its
    rewards differ), "rewards" the shaped reward, "auto" the verdict where the task has one. drop: "all_correct" keeps
    groups all wrong, for credit that learns from them (NGRPO), and needs the verdict. The loop draws new prompts until
    the batch is full, at most max_rounds draws an update, then trains on what there is and reports it.
    """
    if metric == "correct" and correct is None:
        raise RewardError("dynamic_sampling reads metric=correct, but the task has no verifier", hint="metric=rewards")
    value = correct.to(rewards.dtype) if correct is not None and metric != "rewards" else rewards
    dropped = group_is_constant(value, groups)
    if drop == "all_correct":
        if correct is None or metric == "rewards":
            raise RewardError(
                "dynamic_sampling with drop=all_correct reads the verifier's verdict",
                hint="a task with a verifier and metric=correct, or drop=equal",
            )
        dropped = dropped & correct
    return (~dropped).to(rewards.dtype)
