"""Partial rollouts: more groups are started than a step needs, and unfinished ones go on in the next (APRIL)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.engines.base import Progress, Request
from coterie.rollout.forks import refuse_stop_strings
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@dataclass
class _Row:
    """A rollout under way: what was sampled so far, and by which version of the weights."""

    seed: int
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    ended: bool = False
    truncated: bool = False

    def request(self, prompt: Prompt, sampling: Sampling) -> Request:
        """For the tokens to come. A continuation draws from a stream of its own."""
        done = len(self.tokens)
        seed = stream(self.seed, "continued", done) if done else self.seed
        spec = replace(sampling, max_tokens=sampling.max_tokens - done)
        return Request((*prompt.tokens, *self.tokens), (seed,), spec)


@strategy(paper="arXiv:2509.18521", decisions="tokens")
class partial:
    """Start `over` times the groups a step needs and return as soon as enough have ended, those begun first in front.

    Rollouts cut short keep their tokens, log-probs and versions of the weights, and go on next time before new prompts
    are drawn; so nothing sampled is lost, long rollouts are late and not left out, and `version` says which decisions
    are stale (the ratio is to the policy that took each). over = 1 waits for every group. No stop strings.
    """

    def __init__(self, *, over: float = 2.0) -> None:
        self.over = over
        self.waiting: list[tuple[int, list[_Row]]] = []
        """Index of the prompt, and its rollouts."""

    def to_draw(self, count: int) -> int:
        """New prompts to draw where `count` groups are to come back."""
        return max(0, math.ceil(self.over * count) - len(self.waiting))

    def __call__(
        self,
        policy: Any,
        prompts: list[Prompt],
        seeds: list[list[int]],
        sampling: Sampling,
        entropy: bool,
        count: int,
        prompt_at: Callable[[int], Prompt],
    ) -> Rollouts:
        refuse_stop_strings(sampling, "partial")
        fresh = [(p, [_Row(s) for s in own]) for p, own in zip(prompts, seeds, strict=True)]
        groups = [(prompt_at(i), rows) for i, rows in self.waiting] + fresh
        self._sample(policy, groups, sampling, entropy, min(count, len(groups)))
        done = [g for g in groups if all(row.ended for row in g[1])][:count]
        taken = {id(g) for g in done}
        self.waiting = [(p.index, rows) for p, rows in (g for g in groups if id(g) not in taken)]
        rows = [row for _, members in done for row in members]
        stale = sum(v < policy.version for row in rows for v in row.version)
        record("rollout/stale_share", stale / max(1, sum(len(row.version) for row in rows)))
        record("rollout/groups_waiting", float(len(self.waiting)))
        return _table(policy, done, sampling, entropy)

    def _sample(
        self, policy: Any, groups: list[tuple[Prompt, list[_Row]]], sampling: Sampling, entropy: bool, enough: int
    ) -> None:
        """Let the rows that have not ended go on until `enough` groups have."""
        going = [(g, p, row) for g, (p, members) in enumerate(groups) for row in members if not row.ended]
        owner = torch.tensor([g for g, _, _ in going], device=policy.device)

        def until(progress: Progress) -> bool:
            left = torch.zeros(len(groups), dtype=torch.int64, device=owner.device)
            left = left.index_add(0, owner, (~progress.ended).long())
            return int((left == 0).sum()) >= enough

        if not going:
            return
        made = policy.generate([row.request(p, sampling) for _, p, row in going], entropy=entropy, until=until)
        for i, (_, _, row) in enumerate(going):
            mine = made.mask[i]
            row.tokens += made.tokens[i][mine].tolist()
            row.logp += made.logp[i][mine].tolist()
            row.version += [policy.version] * int(mine.sum())
            row.entropy += made.entropy[i][mine].tolist() if made.entropy is not None else []
            row.ended, row.truncated = bool(made.ended[i]), bool(made.truncated[i])

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": [[index, [asdict(row) for row in rows]] for index, rows in self.waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waiting = [(index, [_Row(**row) for row in rows]) for index, rows in state["waiting"]]


def _table(policy: Any, groups: list[tuple[Prompt, list[_Row]]], sampling: Sampling, entropy: bool) -> Rollouts:
    rows = [row for _, members in groups for row in members]
    device, width = policy.device, max(len(row.tokens) for row in rows)
    lengths = torch.tensor([len(row.tokens) for row in rows], device=device)

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor(
            [[*getattr(r, name), *[0] * (width - len(r.tokens))] for r in rows], dtype=dtype, device=device
        )

    owner = torch.tensor([g for g, (_, members) in enumerate(groups) for _ in members], device=device)
    columns = {
        "groups": owner,
        "tokens": column("tokens", torch.int64),
        "mask": torch.arange(width, device=device) < lengths.unsqueeze(-1),
        "lengths": lengths,
        "truncated": torch.tensor([row.truncated for row in rows], device=device),
        "logp_old": column("logp", torch.float32),
        "version": column("version", torch.int64),
        "prompt_index": torch.tensor([p.index for p, _ in groups], device=device)[owner],
    }
    if entropy:
        columns["entropy_old"] = column("entropy", torch.float32)
    return Rollouts([p for p, _ in groups], dict(columns), sampling, [policy.decode(row.tokens) for row in rows])
