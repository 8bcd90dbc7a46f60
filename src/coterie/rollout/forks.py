"""What strategies that fork share: a rollout under way, its continuations by an engine, and the table of all of them.

A fork is a request whose prompt is the prompt and the tokens so far. The row that comes of it holds the whole
completion; the tokens it took over keep the log-probs that were captured when they were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RecipeError
from coterie.rollout.engines.base import Request
from coterie.rollouts import Prompt, Rollouts, Sampling


@dataclass(frozen=True)
class Line:
    """A completion under way. All tensors are [T]; where `sampled` is off a token was put there, not decided."""

    group: int
    tokens: Tensor
    sampled: Tensor
    logp: Tensor
    entropy: Tensor | None
    truncated: bool = True

    def __len__(self) -> int:
        return len(self.tokens)

    def until(self, n: int) -> Line:
        """Its first n tokens, to go on from."""
        entropy = None if self.entropy is None else self.entropy[:n]
        return replace(
            self, tokens=self.tokens[:n], sampled=self.sampled[:n], logp=self.logp[:n], entropy=entropy, truncated=True
        )

    def then(self, tokens: Tensor, sampled: Tensor, logp: Tensor, entropy: Tensor | None, truncated: bool) -> Line:
        """Followed by more tokens."""
        if entropy is not None and self.entropy is not None:
            entropy = torch.cat([self.entropy, entropy])
        cat = torch.cat
        return Line(
            self.group,
            cat([self.tokens, tokens]),
            cat([self.sampled, sampled]),
            cat([self.logp, logp]),
            entropy,
            truncated,
        )

    def followed_by(self, ids: Sequence[int]) -> Line:
        """Followed by tokens that nobody decided on, a cue for example."""
        tokens = torch.tensor(ids, dtype=self.tokens.dtype, device=self.tokens.device)
        nothing = self.logp.new_zeros(len(ids))
        off = torch.zeros_like(tokens, dtype=torch.bool)
        return self.then(tokens, off, nothing, None if self.entropy is None else nothing, True)


def lines_of(rollouts: Rollouts) -> list[Line]:
    """The rows of a table, to fork from."""
    out = []
    for i, n in enumerate(rollouts["mask"].sum(-1).tolist()):
        entropy = rollouts["entropy_old"][i, :n] if "entropy_old" in rollouts else None
        tokens, mask, logp = (rollouts[name][i, :n] for name in ("tokens", "mask", "logp_old"))
        out.append(Line(int(rollouts["groups"][i]), tokens, mask, logp, entropy, bool(rollouts["truncated"][i])))
    return out


def room(policy: Any, prompt: Prompt, sampling: Sampling) -> int:
    """The most tokens that a completion of the prompt may have: the run's budget, or what the context leaves."""
    context = getattr(policy.engine, "context", None)
    return sampling.max_tokens if context is None else min(sampling.max_tokens, context - len(prompt.tokens))


def go_on(
    policy: Any,
    prompts: Sequence[Prompt],
    forks: Sequence[tuple[Line, Sequence[int]]],
    sampling: Sampling,
    entropy: bool,
    *,
    at_most: int | None = None,
) -> list[Line]:
    """Each line, of which none is full, continued once a seed: to the end, or by `at_most` tokens. In order."""
    requests = []
    for line, seeds in forks:
        left = room(policy, prompts[line.group], sampling) - len(line)
        spec = replace(sampling, max_tokens=left if at_most is None else min(left, at_most))
        requests.append(Request((*prompts[line.group].tokens, *line.tokens.tolist()), tuple(seeds), spec))
    if not any(r.seeds for r in requests):
        return []
    made = policy.generate(requests, entropy=entropy)
    owners = [line for line, seeds in forks for _ in seeds]
    out = []
    for i, (line, n) in enumerate(zip(owners, made.mask.sum(-1).tolist(), strict=True)):
        more = None if made.entropy is None else made.entropy[i, :n]
        parts = made.tokens[i, :n], made.mask[i, :n], made.logp[i, :n], more
        out.append(line.then(*parts, bool(made.truncated[i])))
    return out


def tokens_before(policy: Any, ids: Sequence[int], words: str) -> int | None:
    """How many tokens come before the first place where their text has these words; None where it has not."""
    text = policy.decode(ids)
    if not words or words not in text:
        return None
    low, high = 0, len(ids)
    while low < high:  # the most tokens whose text does not reach into it
        middle = (low + high + 1) // 2
        short = len(policy.decode(ids[:middle])) <= text.index(words)
        low, high = (middle, high) if short else (low, middle - 1)
    return low


def start(policy: Any, prompts: Sequence[Prompt]) -> list[Line]:
    """An empty line for each prompt."""
    nothing = torch.zeros(0, device=policy.device)
    return [Line(g, nothing.long(), nothing.bool(), nothing, nothing) for g in range(len(prompts))]


def table(
    policy: Any, prompts: Sequence[Prompt], lines: Sequence[Line], sampling: Sampling, **columns: Tensor
) -> Rollouts:
    """Lines as rows, in order, with further columns. Lengths count decisions; a cue is context."""
    from torch.nn.utils.rnn import pad_sequence

    def stack(name: str) -> Tensor:
        return pad_sequence([getattr(line, name) for line in lines], batch_first=True)

    mask = stack("sampled")
    groups = torch.tensor([line.group for line in lines], device=mask.device)
    out = {
        "groups": groups,
        "tokens": stack("tokens"),
        "mask": mask,
        "lengths": mask.sum(-1),
        "truncated": torch.tensor([line.truncated for line in lines], device=mask.device),
        "logp_old": stack("logp"),
        "version": torch.where(mask, policy.version, 0),
        "prompt_index": torch.tensor([p.index for p in prompts], device=mask.device)[groups],
        **columns,
    }
    if lines[0].entropy is not None:
        out["entropy_old"] = stack("entropy")
    texts = [policy.decode(line.tokens.tolist(), sampling.stop) for line in lines]
    return Rollouts(list(prompts), dict(out), sampling, texts)


def refuse_stop_strings(sampling: Sampling, strategy: str) -> None:
    """A stop string that lies across a fork would be missed."""
    if sampling.stop:
        raise RecipeError(
            f"rollout.strategy={strategy} cuts completions between tokens, and a stop string may lie across a cut",
            where="rollout.stop",
            hint="rollout.stop=[]; the end-of-text token ends completions",
        )
