"""Recorded rollouts as the loop reads them: groups to draw from, and the table of those that were drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.errors import DataError, RecipeError, did_you_mean
from coterie.offline import files, pairs
from coterie.offline.pairs import Row
from coterie.policies.causal_lm import CausalLM
from coterie.policies.tiny import CHARACTERS
from coterie.reductions import combine
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.sections import Settings
from coterie.tasks.base import Task

BY_DECISION = {"logp_old": torch.float32, "entropy_old": torch.float32, "version": torch.int64, "turn": torch.int64}
BY_TURN = {"step_rewards": torch.float32, "state_key": torch.int64}
ALWAYS = frozenset({
    "groups", "rewards", "components", "mask", "lengths", "truncated", "tokens", "logp_old", "version", "prompt_index",
    "token_rewards", "answers", "answer_mask",
})  # fmt: skip
"""Columns that any data gives, or that follow from what it gives."""
CHECKED = 20
"""Rows whose tokens are held against their text, where no vocabulary is recorded."""


@dataclass
class Recorded:
    """Groups of recorded rollouts. `sampling` and `vocabulary` are None where the data does not say."""

    table: Any
    members: list[np.ndarray]
    weights: dict[str, float]
    sampling: Sampling | None = None
    vocabulary: str | None = None
    revise: str | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def names(self) -> list[str]:
        return [n for n in self.table.column_names if not n.startswith("__")]

    @property
    def holds_pairs(self) -> bool:
        return pairs.are_pairs(self.names)

    @cached_property
    def scores(self) -> list[str]:
        """Names of the recorded reward components."""
        if self.holds_pairs:
            shown = [pairs.REVISES] if self.revise is not None else []
            return [pairs.PREFERENCE, *pairs.scores_of(self.names), *shown]
        return [n.removeprefix("reward.") for n in self.names if n.startswith("reward.")]

    @property
    def group_size(self) -> int:
        """Rollouts of the largest group."""
        return (6 if self.revise is not None else 2) if self.holds_pairs else max(map(len, self.members))

    @property
    def rollouts(self) -> int:
        return len(self) * self.group_size if self.holds_pairs else sum(map(len, self.members))

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the vocabulary that it can fill."""
        own = {*BY_DECISION, *BY_TURN, "parent", "branch", "correct"} & set(self.names)
        return ALWAYS | {n for n in own if not self.table[n].null_count}

    @property
    def lacks_logp(self) -> bool:
        """Whether there are rows without the log-probs of their decisions."""
        return "logp_old" not in self.names or self.table["logp_old"].null_count > 0

    def rows(self, group: int) -> list[Row]:
        """The rollouts of a group, as the data has them."""
        found = self.table.take(self.members[group]).to_pylist()
        return pairs.rows_of(found[0], pairs.scores_of(self.names), self.revise) if self.holds_pairs else found

    def task(self, named: Task) -> Task:
        """The task with the recorded prompts to train on. A warm start is on the preferred answers of pairs."""
        solution = (lambda row: row["solution"]) if self.holds_pairs else None
        return replace(named, train=_Prompts(self), rewards=[], reference=solution, corrupt=None, process=None)

    def characters(self) -> str:
        """What a vocabulary of characters must have."""
        return "".join(sorted(set(CHARACTERS).union(*self._texts())))

    def _texts(self) -> Iterator[str]:
        for group in range(len(self)):
            for row in self.rows(group):
                prompt = row["prompt"]
                yield from [prompt] if isinstance(prompt, str) else [str(m["content"]) for m in prompt]
                yield row.get("before", "") + (pairs.said(row["completion"]) if row.get("completion") else "")

    def batch(self, policy: CausalLM, groups: Sequence[int], sampling: Sampling) -> tuple[Rollouts, Tensor]:
        """The table of some groups, and which rows came without log-probs ([B] bool; theirs are 0).

        sampling: how the decisions were drawn, where the data does not say.
        """
        taken = [self.rows(g) for g in groups]
        prompts = [
            Prompt(_prompt(policy, rows[0]), {"prompt": rows[0]["prompt"]}, g)
            for rows, g in zip(taken, groups, strict=True)
        ]
        every = [row for rows in taken for row in rows]
        owner = torch.tensor([g for g, rows in enumerate(taken) for _ in rows])
        written = [_tokens(policy, row) for row in every]
        self._fits(policy, prompts, owner.tolist(), written)
        width = max(1, *(len(ids) for ids, _ in written))
        tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in written])
        mask = torch.tensor([[*chosen, *[False] * (width - len(chosen))] for _, chosen in written])
        components = {n: _numbers([row.get(f"reward.{n}") for row in every]) for n in self.scores}
        rewards = self._rewards(every, components)
        if bool(rewards.isnan().any()):
            where = every[int(rewards.isnan().nonzero()[0])].get(files.ORDER)
            raise DataError(f"row {where + 1 if where is not None else '?'} has no reward", hint="leave such rows out")
        columns: dict[str, Any] = {
            "groups": owner, "tokens": tokens, "mask": mask, "lengths": mask.sum(-1),
            "truncated": torch.tensor([bool(row.get("truncated")) for row in every]),
            "prompt_index": torch.tensor(groups)[owner], "rewards": rewards,
            "components": components or {"reward": rewards},
        }  # fmt: skip
        for name, kind in BY_DECISION.items():
            if name in self.columns | {"logp_old"}:
                columns[name] = _by_decision(name, every, mask, kind)
        for name, kind in BY_TURN.items():
            if name in self.columns:
                turns = max(1, *(len(row[name]) for row in every))
                columns[name] = torch.tensor([[*r[name], *[0] * (turns - len(r[name]))] for r in every], dtype=kind)
        if "correct" in self.columns:
            columns["correct"] = torch.tensor([bool(row["correct"]) for row in every])
        if {"parent", "branch"} <= self.columns:
            columns |= _forks(every, taken)
        texts = [
            policy.decode(ids) if row.get("completion") is None else pairs.said(row["completion"])
            for row, (ids, _) in zip(every, written, strict=True)
        ]
        lacking = torch.tensor([row.get("logp_old") is None for row in every], device=policy.device)
        return Rollouts(prompts, columns, self.sampling or sampling, texts).to(policy.device), lacking

    def _rewards(self, rows: list[Row], components: dict[str, Tensor]) -> Tensor:
        """The recorded reward, or the weighted sum of its components where their weights are known. [B]"""
        if "reward" in self.names and not self.weights:
            return _numbers([row["reward"] for row in rows])
        return combine(components, {n: self.weights.get(n, 1.0) for n in components})

    def _fits(self, policy: CausalLM, prompts: list[Prompt], owner: list[int], written: list[Any]) -> None:
        limit = policy.engine.context
        for group, (ids, _) in zip(owner, written, strict=True):
            length = len(prompts[group].tokens) + len(ids)
            if limit is not None and length > limit:
                raise DataError(
                    f"a rollout of {length} tokens, its prompt included, exceeds the model's context of {limit}",
                    hint="leave it out of the data, or use a model with a longer context",
                )  # fmt: skip

    def check_policy(self, policy: Any) -> None:
        """Raise an error for a policy that does not write tokens from left to right, or whose tokens are others."""
        if not isinstance(policy, CausalLM):
            raise RecipeError(
                f"recorded rollouts teach a causal language model, and this is a policy of {policy.decisions}",
                hint="leave out the task, or name one that is answered in text",
            )
        mend = "give the model that recorded it, or keep only prompt, completion and reward: text is tokenised anew"
        if "tokens" not in self.names:
            return
        if self.vocabulary is not None and self.vocabulary != policy.vocabulary:
            raise DataError("the rollouts were recorded with another tokenizer than the model's", hint=mend)
        if self.vocabulary is not None:
            return
        import pyarrow.compute as pc

        top, size = pc.max(pc.list_flatten(self.table["tokens"])).as_py(), len(policy.tokenizer)
        if top is not None and top >= size:
            raise DataError(f"there is a token {top}, and the model's vocabulary has {size}", hint=mend)
        for row in self.table.slice(0, CHECKED).to_pylist():
            text = row.get("completion")
            if isinstance(text, str) and row["tokens"] and not policy.decode(row["tokens"]).startswith(text.strip()):
                raise DataError(
                    f"the tokens of row {row[files.ORDER] + 1} read {policy.decode(row['tokens'])!r} with the model's "
                    f"tokenizer, not {text!r}", hint=mend,
                )  # fmt: skip


class _Prompts(Sequence[Row]):
    """What a task's training rows are: the prompt of each group, read when it is asked for."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def __len__(self) -> int:
        return len(self.recorded)

    def __getitem__(self, group: Any) -> Any:
        first = self.recorded.rows(group)[0]
        pair = {"solution": pairs.said(first["completion"])} if self.recorded.holds_pairs else {}
        return {"prompt": first["prompt"], **pair}


def load(settings: Settings) -> Recorded:
    """Read what `offline.rollouts` names. Raises DataError for data that cannot be learned from."""
    try:
        return _load(settings)
    except DataError as error:
        named = settings.offline.rollouts or []
        where = error.where or ", ".join([named] if isinstance(named, str) else named)
        raise DataError(error.message, where=where, hint=error.hint) from error


def _load(settings: Settings) -> Recorded:
    import pyarrow as pa

    section, given = settings.offline, settings.rewards.weights
    table, about = files.read(section.rollouts or [])
    if other := next((a["decisions"] for a in about if a.get("decisions", "tokens") != "tokens"), None):
        raise DataError(f"what was recorded are {other}; only rollouts of tokens can be learned from again")
    names = table.column_names
    sampling = files.agreed(about, "sampling", "how they were sampled", "log-probs belong to that: one run at a time")
    out = Recorded(
        table,
        members=[],
        weights={},
        sampling=None if sampling is None else Sampling.of(sampling),
        vocabulary=files.agreed(about, "vocabulary", "the tokenizer", "train on one model's at a time"),
        revise=section.revise,
    )
    if section.revise is not None and not out.holds_pairs:
        raise RecipeError("offline.revise is for preference pairs", hint="columns prompt, chosen and rejected")
    if out.holds_pairs:
        files.require(table, ["chosen", "rejected"], "one half of a pair")
        out.members = [np.array([i]) for i in range(len(table))]
        out.weights = {n: float(n == pairs.PREFERENCE) for n in out.scores}
    else:
        files.require(table, ["prompt"], "which rollouts answer")
        if not {"completion", "tokens"} & set(names):
            files.require(table, ["completion"], "what was answered")
        if not out.scores:
            files.require(table, ["reward"], "what a rollout earned")
            kind = table.schema.field("reward").type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
                raise DataError(f"column 'reward' is {kind}, not a number")
        _check_lengths(table)
        out.members = _groups(table)
        out.weights = _weights(out.scores, about, given, "reward" in names)
    for name in given:
        if name not in out.scores:
            raise RecipeError(
                f"rewards.weights names '{name}', which was not recorded", hint=did_you_mean(name, out.scores)
            )
    out.weights = {**out.weights, **given}
    return out


def _weights(scores: list[str], about: list[dict[str, Any]], given: dict[str, float], summed: bool) -> dict[str, float]:
    """The weight of each component: as recorded, else 1. {} where the recorded sum stands."""
    if set(scores) <= set(given):
        return {}
    hint = "choose: rewards.weights={NAME: …}, all of them"
    known = files.agreed(about, "reward_weights", "the weights of the rewards", hint)
    if known is None and summed and not given:
        return {}
    return {n: float((known or {}).get(n, 1.0)) for n in scores}


def _groups(table: Any) -> list[np.ndarray]:
    """Row numbers of each group, groups in the order in which they begin: by `group` within a file, else by prompt."""
    by = [files.FILE, "group"] if "group" in table.column_names and not table["group"].null_count else ["prompt"]
    members: dict[str, list[int]] = {}
    for number, row in enumerate(table.select(by).to_pylist()):
        members.setdefault(json.dumps(row, sort_keys=True, default=str), []).append(number)
    return [np.array(rows) for rows in members.values()]


def _check_lengths(table: Any) -> None:
    """Every column of one value a decision has as many as there are decisions."""
    import pyarrow.compute as pc

    if "tokens" not in table.column_names:
        if "logp_old" in table.column_names:
            raise DataError("there are log-probs ('logp_old') and no tokens that they belong to", hint="add 'tokens'")
        return
    count = pc.list_value_length(table["tokens"])
    for name in BY_DECISION:
        if name in table.column_names:
            wrong = pc.fill_null(pc.not_equal(pc.list_value_length(table[name]), count), False)
            if pc.any(wrong).as_py():
                row = wrong.to_pylist().index(True) + 1
                raise DataError(f"row {row} has another number of values in '{name}' than of tokens")


def _prompt(policy: CausalLM, row: Row) -> tuple[int, ...]:
    return tuple(row["prompt_tokens"]) if row.get("prompt_tokens") else policy.encode(row["prompt"])


def _tokens(policy: CausalLM, row: Row) -> tuple[list[int], list[bool]]:
    """Token ids of a rollout up to its last decision, and which of them are decisions.

    Text ends with the EOS token, unless it was truncated. What stands before it (`before`) is no decision.
    """
    if row.get("ids") is not None:
        return row["ids"], row["decided"]
    if row.get("tokens") is not None:
        return row["tokens"], [True] * len(row["tokens"])
    ids = list(policy.encode_completion(pairs.said(row["completion"])))
    eos = policy.tokenizer.eos_token_id
    if eos is not None and not row.get("truncated") and ids[-1:] != [eos]:
        ids.append(eos)
    before = list(policy.encode_completion(row["before"])) if row.get("before") else []
    return before + ids, [False] * len(before) + [True] * len(ids)


def _by_decision(name: str, rows: list[Row], mask: Tensor, kind: torch.dtype) -> Tensor:
    """One value a decision, in order, laid where the mask is on; 0 in rows that have none. -> [B,T]"""
    out = torch.full(mask.shape, -1 if name == "turn" else 0, dtype=kind)
    for i, row in enumerate(rows):
        if row.get(name) is not None:
            out[i, mask[i]] = torch.tensor(row[name], dtype=kind)
    return out


def _forks(every: list[Row], taken: list[list[Row]]) -> dict[str, Tensor]:
    """Parents as rows of the table; one that is not in the rollout's group is the rollout itself."""
    place: dict[tuple[int, int], int] = {}
    start = 0
    for rows in taken:
        place |= {(start, row[files.ORDER]): start + i for i, row in enumerate(rows)}
        start += len(rows)
    starts = np.repeat(np.cumsum([0, *map(len, taken[:-1])]), [len(rows) for rows in taken]).tolist()
    parents = [
        place.get((first, row[files.FIRST] + row["parent"]), i)
        for i, (first, row) in enumerate(zip(starts, every, strict=True))
    ]
    return {"parent": torch.tensor(parents), "branch": torch.tensor([row["branch"] for row in every])}


def _numbers(values: list[Any]) -> Tensor:
    return torch.tensor([math.nan if v is None else float(v) for v in values], dtype=torch.float32)
