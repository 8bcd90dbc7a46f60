"""CodeDPO's ranking: programs and tests of unknown worth vouch for each other (arXiv:2410.05605)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.errors import RewardError
from coterie.metrics import record
from coterie.pieces import shaping
from coterie.reductions import group_extreme, group_sum


@shaping(paper="arXiv:2410.05605")
def mutual_verification(
    rewards: Tensor,
    components: Mapping[str, Tensor],
    groups: Tensor,
    *,
    tests: str = "test",
    damping: float = 0.85,
    rounds: int = 10,
) -> Tensor:
    """The score of each rollout in place of its reward: high if it passes tests that good rollouts pass. [B] -> [B]

    tests: the components whose names begin with this are tests, passed above 1/2. In each of the `rounds`, at once, s =
    (1 - damping) s + damping * sum of the scores of the tests it passed, and a test's t likewise of the rollouts of the
    group that passed it; both over the largest of the group. All start at 1. Equal rows of passes have equal scores, so
    a group in which all pass or fail alike teaches nothing. Of the reward it replaces nothing is read but its shape.
    """
    names = [n for n in components if n.startswith(tests)]
    if not names:
        raise RewardError(
            f"mutual_verification reads the components that begin with '{tests}', and there is none",
            hint="reward functions named test_1, test_2 … with weight 0, each of which runs one test",
        )
    passed = torch.stack([(components[n] > 0.5).to(rewards.dtype) for n in names], -1)
    score, trust = torch.ones_like(rewards), torch.ones_like(passed)
    tiny = torch.finfo(rewards.dtype).tiny  # all scores are 0 where damping is 1 and nothing is passed
    for _ in range(rounds):
        voted = torch.stack([group_sum(column * score, groups) for column in passed.unbind(-1)], -1)
        backed = (passed * trust).sum(-1)
        score, trust = (1 - damping) * score + damping * backed, (1 - damping) * trust + damping * voted
        score = score / group_extreme(score, groups, largest=True).clamp_min(tiny)
        trust = trust / trust.amax(-1, keepdim=True).clamp_min(tiny)
    record("codedpo/pass_rate", passed.mean(-1))
    record("codedpo/score", score)
    return score
