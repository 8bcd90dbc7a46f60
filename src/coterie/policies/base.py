"""What the loop asks of a policy, whatever its decisions are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.rollouts import Prompt, Rollouts, Sampling


@dataclass(frozen=True)
class Part:
    """Which rows of a supervised batch a process has: those from `first`. `total` sums a count over the processes."""

    first: int = 0
    total: Callable[[int], int] = int


WHOLE = Part()


class Policy(Protocol):
    """Takes decisions, scores them, saves and loads. Everything it returns is on `device`."""

    version: int
    """Counts updates of the weights; the loop bumps it, and every decision carries it."""
    model: Any
    """The module that the optimizer moves, with `named_parameters`."""
    decisions: str
    """What they are: "tokens", "denoising steps" or "unmaskings"."""
    lacks: dict[str, str]
    """Columns that it does not have, each with the reason: a recipe that reads one is refused."""
    independent: bool
    """Whether the score of a decision does not need the others' of its rollout."""

    @property
    def device(self) -> torch.device: ...

    @property
    def has_adapters(self) -> bool: ...

    @property
    def shares_prefix(self) -> bool: ...

    @property
    def exact(self) -> bool:
        """Whether the log-probs captured while sampling are the trainer's own, but for rounding."""

    @property
    def tolerance(self) -> float:
        """The most by which a captured log-prob may differ from a recomputed one by rounding alone."""

    def encode(self, prompt: Any) -> tuple[int, ...]: ...

    def encode_all(self, prompts: Sequence[Any]) -> list[tuple[int, ...]]:
        """Each of them encoded, together where that is cheaper."""

    def encode_completion(self, text: Any) -> Any:
        """A supervised example, as `sft_loss` takes it."""

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Text of a prompt (or of a completion, where that is tokens)."""

    def rollout(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        entropy: bool = False,
        ended: Callable[[int, Any], None] | None = None,
    ) -> Rollouts: ...

    def score(self, rollouts: Rollouts, want: Collection[str] = ("logp",)) -> dict[str, Tensor]: ...

    def decision_texts(self, rollouts: Rollouts) -> list[list[str]] | None:
        """The text of each decision, for people to look at; None where decisions have none."""

    def sft_loss(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Any], seed: int | None = None, part: Part = WHOLE
    ) -> Tensor:
        """The loss of supervised examples; of a part of a batch its share, with the noise its rows have in the whole:
        shares add up to the loss of the whole."""

    def trainable_parameters(self) -> list[torch.nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...

    def save(self, folder: str | Path, *, merge: bool = False) -> None: ...


class Gaussian(Policy, Protocol):
    """A policy whose decisions are Gaussian: one that has the columns `kl_ref` and `mean_gap`."""

    def means(self, rollouts: Rollouts) -> Tensor:
        """Mean of each decision, 0 elsewhere. [B,T,...]"""

    def best_velocities(self, rollouts: Rollouts) -> Tensor:
        """What `best_gap` of each decision is measured from, 0 elsewhere. [B,T,...]"""

    def fine_velocities(self, rollouts: Rollouts, substeps: int) -> Tensor:
        """What `fine_gap` of each decision is measured from, 0 elsewhere. [B,T,...]"""


class Showing(Policy, Protocol):
    """A policy that can look at a rollout with another in its prompt: one that has the columns of SHOWN."""

    def score_shown(self, rollouts: Rollouts, template: str) -> dict[str, Tensor]:
        """These columns, whole groups given; `template` tells how the other stands in the prompt. [B,T] each"""


class Estimating(Policy, Protocol):
    """A policy whose log-probs may be estimates over drawn noise, not those captured while sampling."""

    @property
    def estimates(self) -> bool: ...

    def renoise(self, rollouts: Rollouts, epoch: int) -> Rollouts:
        """The same rollouts with the noise of another epoch."""
