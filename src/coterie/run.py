"""Everything a run holds: recipe, policy, task, optimizer, pieces with memory, and how far it has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from coterie import wiring
from coterie.checkpoint import load_state, save_state
from coterie.demonstrations import Demonstrations
from coterie.errors import DataError
from coterie.history import History
from coterie.learner import Learner
from coterie.offline.recorded import Recorded
from coterie.optim.master import MasterWeights
from coterie.pieces import BoundPiece
from coterie.policies.base import Policy
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.named import model_spec
from coterie.policies.reference import Reference
from coterie.policies.teacher import Teacher
from coterie.recipe import Recipe
from coterie.rewards.pairwise.contest import Contest
from coterie.rewards.remembering import Remembering, check_state
from coterie.rewards.runner import RewardRunner
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.sections import Settings
from coterie.stage import Stage
from coterie.tasks.base import Task
from coterie.workers import Alone, Away

POLICIES = "policies"
"""Folder of a checkpoint that holds one of each policy, where there are several."""
_PROMPTS_KEPT = 2**14


@dataclass
class Run:
    """The state the loop moves. `step` counts completed optimisation steps."""

    recipe: Recipe
    task: Task
    policy: Policy
    learner: Learner
    rewards: RewardRunner
    optimizer: torch.optim.Optimizer | MasterWeights
    curriculum: BoundPiece
    strategy: BoundPiece
    score_columns: set[str]
    whole_groups: bool
    reward_weights: dict[str, float]
    process: str | None = None
    """Name of the process function, if there is one; it runs with the rewards."""
    contest: Contest | None = None
    """The pairwise judge and its scheme, if there are; its component has the judge's name."""
    step: int = 0
    drawn: int = 0
    """Groups rolled out in the run: the ticket of the next one."""
    first_update: bool = True
    started: bool = False
    """Whether the warm start is behind us."""
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the user should hear of: said and cleared after each step."""
    seen: Rollouts | None = None
    """Everything rolled out in the last step, filtered groups included: what the metrics describe."""
    pending: deque[Rollouts] = field(default_factory=deque)
    """Batches waiting for their late update (update.staleness)."""
    history: History = field(default_factory=History)
    """What `drift` is measured on; empty where no piece reads it."""
    recorded: Recorded | None = None
    """What is learned from, where nothing is rolled out."""
    others: list[Run] = field(default_factory=list)
    """The runs of the other policies that train together with this one, which leads."""
    stage: Stage | None = None
    """Where they meet."""
    batch: Rollouts | None = None
    """What the last update learned from."""
    workers: Alone = field(default_factory=Alone)
    """The processes that train together; one, unless `coterie.scale` says otherwise."""
    away: Away | None = None
    """Where rollouts are made, if not here."""
    asked: list[list[Any]] = field(default_factory=list)
    """Groups that were asked for elsewhere before the checkpoint, and are to be asked for again."""
    _reference: Reference | None = None
    _start: Reference | None = None
    _teacher: Teacher | None = None
    _demonstrations: Demonstrations | None = None
    _prompts: dict[int, Prompt] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.recipe.settings

    @property
    def agents(self) -> list[Run]:
        """The runs of all policies that train in this process: this one alone, but for `policies`."""
        return [self, *self.others]

    @property
    def name(self) -> str:
        """Of the policy, where there are several; else empty."""
        return self.recipe.agent

    @property
    def estimates(self) -> bool:
        """Whether log-probs are estimates over drawn noise: every epoch of an update draws its own."""
        return getattr(self.policy, "estimates", False)

    @property
    def learns(self) -> bool:
        """Whether its policy is trained; of several one may be frozen."""
        return "optimizer" in self.recipe.single

    @property
    def acting(self) -> Policy | dict[str, Policy]:
        """Who takes the decisions: the policy, or each of several by name."""
        return self.policy if self.stage is None else {player.name: player.policy for player in self.stage.players}

    def table(self, rollouts: Rollouts, step: int) -> dict[str, Any]:
        """The columns a piece may read at this point."""
        out: dict[str, Any] = {**rollouts.columns, "step": step, "budget": self.budget}
        out["reward_weights"] = self.reward_weights
        if "pass_index" in wiring.wanted(self.recipe, "roll out") and "pass_index" not in out:
            here = torch.arange(rollouts["mask"].shape[1], device=rollouts["mask"].device)
            out["pass_index"] = here.expand(rollouts["mask"].shape)  # each decision had a forward pass of its own
        if "schedules" in wiring.wanted(self.recipe, "roll out") and "schedules" not in out:
            out["schedules"] = torch.zeros_like(rollouts["mask"])  # how to decode was nobody's decision
        out.setdefault("weights", torch.ones_like(rollouts["logp_old"][:, 0]))
        return out

    @property
    def budget(self) -> int:
        """The most decisions that a rollout may take."""
        if self.recorded is not None and self.recorded.sampling is not None:
            return self.recorded.sampling.max_tokens
        return self.settings.rollout.max_tokens if self.task.latent is None else self.settings.denoise.steps

    def prompt(self, index: int) -> Prompt:
        """Prompt `index` of the training set."""
        return self.prompts([index])[0]

    def prompts(self, indices: Sequence[int]) -> list[Prompt]:
        """These prompts of the training set, each encoded once while it is among the last ones asked for."""
        if len(self._prompts) + len(indices) > _PROMPTS_KEPT:
            self._prompts.clear()
        fresh = [i for i in dict.fromkeys(indices) if i not in self._prompts]
        rows = [self.task.train[i] for i in fresh]
        encoded = self.policy.encode_all([row["prompt"] for row in rows])
        self._prompts |= {i: Prompt(ids, row, i) for i, ids, row in zip(fresh, encoded, rows, strict=True)}
        return [self._prompts[i] for i in indices]

    def reference(self) -> Reference:
        if self._reference is None:
            spec = self.settings.reference
            self._reference = Reference(self.policy, spec.update, spec.decay, spec.every, spec.momentum)
        return self._reference

    def start(self) -> Reference:
        """The policy as it was before the first step, whose log-probs stand where none were recorded."""
        if self.needs_reference() and self.settings.reference.update == "frozen":
            return self.reference()
        if self._start is None:
            self._start = Reference(self.policy)
        return self._start

    def needs_start(self) -> bool:
        return self.recorded is not None and self.recorded.lacks_logp

    def teacher(self) -> Teacher:
        """The model that `logp_teacher` comes from, loaded at the first call."""
        if self._teacher is None:
            spec = model_spec(self.recipe, self.task, None, ModelSpec, "teacher.model")
            self._teacher = Teacher(cast(CausalLM, self.policy), CausalLM.load(spec))
        return self._teacher

    def demonstrations(self) -> Demonstrations:
        if self._demonstrations is None:
            self._demonstrations = Demonstrations(self.task, self.policy)
        return self._demonstrations

    def needs_reference(self) -> bool:
        return wiring.reads_reference(self.recipe)

    def stateful(self) -> dict[str, Remembering]:
        """Pieces and reward functions with memory, by slot and slug or name."""
        first = [("draw.curriculum", self.curriculum), ("rollout.strategy", self.strategy)]
        every = [*first, *self.recipe.all_bound()]
        found: dict[str, Remembering] = {f"{slot}={b.piece.slug}": b for slot, b in every if b.instance is not None}
        return found | {f"rewards.functions={name}": m for name, m in self.rewards.memories.items()}

    def save(self, folder: Path) -> None:
        """Write everything needed to go on exactly from here; of several policies each to a folder of its own."""
        if self.stage is not None:
            for player in self.stage.players:
                player.save_alone(folder / POLICIES / player.name)
        else:
            self.save_alone(folder)

    def save_alone(self, folder: Path) -> None:
        pieces = {name: piece.state_dict() for name, piece in self.stateful().items()}
        for name in self.rewards.memories:
            check_state(pieces[f"rewards.functions={name}"], name)
        self.policy.save(folder / "policy")
        state = {
            "step": self.step,
            "drawn": self.drawn,
            "version": self.policy.version,
            "first_update": self.first_update,
            "optimizer": self.learner.state(self.optimizer),
            "pieces": pieces,
            "reference": self._reference.state_dict() if self._reference is not None else None,
            "start": self._start.state_dict() if self._start is not None else None,
            "recorded": None if self.recorded is None else self.recorded.rollouts,
            "adapters": self.policy.state_dict() if self.policy.has_adapters else None,
            "pending": [_pack(r) for r in self.pending],
            "history": self.history.state_dict(),
            "asked": self.asked if self.away is None else self.away.state_dict(),
        }
        save_state(folder / "state.pt", state)

    def restore(self, folder: Path) -> None:
        """Take everything from a checkpoint but whole-model weights, which `build` has loaded already."""
        state = load_state(folder / "state.pt")
        self.step, self.first_update, self.started = state["step"], state["first_update"], True
        self.drawn = state["drawn"]
        self.policy.version = state["version"]
        if state["adapters"] is not None:
            self.policy.load_state_dict(state["adapters"])
        self.learner.restore(self.optimizer, state["optimizer"])
        for name, bound in self.stateful().items():
            bound.load_state_dict(state["pieces"][name])
        if state["reference"] is not None:
            self.reference().load_state_dict(state["reference"])
        if state["start"] is not None:
            self.start().load_state_dict(state["start"])
        if self.recorded is not None and state["recorded"] != self.recorded.rollouts:
            raise DataError(
                f"the run began with {state['recorded']} recorded rollouts, and now there are {self.recorded.rollouts}",
                where=", ".join(_listed(self.settings.offline.rollouts)),
                hint="put the data back as it was, or start a new run from the checkpoint's policy",
            )
        self.pending = deque(self._unpack(r) for r in state["pending"])
        self.history.load_state_dict(state["history"])
        self.asked = state["asked"]

    def _unpack(self, packed: dict[str, Any]) -> Rollouts:
        prompts = [Prompt(tuple(t), self.task.train[i], i) for t, i in packed["prompts"]]
        texts = [t.numpy() if isinstance(t, torch.Tensor) else t for t in packed["texts"]]
        return Rollouts(prompts, packed["columns"], Sampling.of(packed["sampling"]), texts, packed["media"])


def _pack(rollouts: Rollouts) -> dict[str, Any]:
    return {
        "prompts": [[list(p.tokens), p.index] for p in rollouts.prompts],
        "columns": rollouts.columns,
        "sampling": rollouts.sampling.plain(),
        "texts": [torch.as_tensor(t) if isinstance(t, np.ndarray) else t for t in rollouts.texts],
        "media": rollouts.media,
    }


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []
