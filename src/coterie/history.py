"""The last rollout of each prompt that was visited of late, to see how far the policy has moved since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from coterie.reductions import masked_mean
from coterie.rollouts import Prompt, Rollouts, Sampling

LIMIT = 4096
"""Prompts remembered; those visited longest ago go first."""
KEPT = ("tokens", "mask", "logp_old")
"""Columns of a rollout that are kept, as far as it has them."""


class History:
    """One rollout a prompt, the first of its group, with the log-probs of the moment it was taken."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.last: dict[int, dict[str, Any]] = {}

    def remember(self, rollouts: Rollouts) -> None:
        """Keep a rollout of each prompt in place of what was kept; prompts without an index are passed by."""
        rows = {group: row for row, group in reversed(list(enumerate(rollouts["groups"].tolist())))}
        sampling = rollouts.sampling.plain()
        for group, row in sorted(rows.items()):
            prompt = rollouts.prompts[group]
            if prompt.index < 0:
                continue
            self.last.pop(prompt.index, None)  # so that it becomes the youngest
            self.last[prompt.index] = {
                "prompt": list(prompt.tokens),
                "sampling": sampling,
                **{n: rollouts[n][row].clone().cpu() for n in KEPT if n in rollouts},
                "media": {n: m[row].clone().cpu() for n, m in rollouts.media.items()},
            }
        for index in list(self.last)[: max(len(self.last) - self.limit, 0)]:
            del self.last[index]

    def drift(self, rollouts: Rollouts, score: Callable[[Rollouts], Tensor]) -> Tensor:
        """Mean absolute log-ratio between now and then, on the rollout that is kept of each prompt; 0 where none is.
        `score` gives the current log-probs of a table [n,T]. [B]
        """
        now = [p.index for p in rollouts.prompts]
        by_spec: dict[str, list[int]] = {}
        for index in dict.fromkeys(now):
            if index in self.last:
                by_spec.setdefault(repr(self.last[index]["sampling"]), []).append(index)
        found: dict[int, float] = {}
        for indices in by_spec.values():
            past = self._table(indices, rollouts["logp_old"])
            moved = masked_mean((score(past) - past["logp_old"]).abs(), past["mask"])
            found |= dict(zip(indices, moved.tolist(), strict=True))
        by_prompt = rollouts["logp_old"].new_tensor([found.get(index, 0.0) for index in now])
        return by_prompt[rollouts["groups"]]

    def _table(self, indices: list[int], like: Tensor) -> Rollouts:
        kept = [self.last[index] for index in indices]
        columns = {n: pad_sequence([k[n] for k in kept], batch_first=True) for n in KEPT if n in kept[0]}
        columns |= {"groups": torch.arange(len(kept)), "lengths": columns["mask"].sum(-1)}
        columns["weights"] = torch.ones(len(kept), dtype=like.dtype)
        return Rollouts(
            [Prompt(tuple(k["prompt"]), index=i) for k, i in zip(kept, indices, strict=True)],
            {n: v.to(like.device) for n, v in columns.items()},
            Sampling.of(kept[0]["sampling"]),
            media={n: torch.stack([k["media"][n] for k in kept]).to(like.device) for n in kept[0]["media"]},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = dict(state["last"])
