"""The teacher: another causal LM, frozen, that says how likely it finds what the policy sampled."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.rollouts import Rollouts


class Teacher:
    """Scores the policy's rollouts under a model of its own, never with gradient. It reads the policy's token ids, so
    both must spell alike.

    Where the two end a text with different tokens, the teacher finds the policy's end absurd: it says nothing there.
    """

    def __init__(self, policy: CausalLM, teacher: CausalLM) -> None:
        _check_vocabulary(policy.tokenizer, teacher.tokenizer)
        self.teacher = teacher
        teacher.model.requires_grad_(False)
        end = policy.tokenizer.eos_token_id
        self.foreign_end = end if end is not None and end != teacher.tokenizer.eos_token_id else None

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """{"logp_teacher": [B,T]} under the sampling spec of the rollouts, 0 where masked, NaN at an end that is not
        the teacher's.
        """
        logp = self.teacher.score(rollouts, {"logp"})["logp"]
        if self.foreign_end is not None:
            logp = logp.masked_fill((rollouts["tokens"] == self.foreign_end) & rollouts["mask"], math.nan)
        return {"logp_teacher": logp}


def _check_vocabulary(own: Any, others: Any) -> None:
    """Raise PolicyError unless every token of the policy, special ones aside, has the same id for the teacher."""
    known, special = others.get_vocab(), set(own.all_special_tokens)
    strange = [token for token, i in own.get_vocab().items() if token not in special and known.get(token) != i]
    if strange:
        raise PolicyError(
            f"the teacher spells differently: {len(strange)} tokens of the policy have another id or none, first "
            f"{strange[0]!r}",
            where="teacher.model",
            hint="a teacher with the policy's tokenizer: a larger model of the same family",
        )
