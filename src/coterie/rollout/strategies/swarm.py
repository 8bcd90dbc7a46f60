"""Plain sampling, with groups that other runs have shared in the place of some of one's own (arXiv:2509.08721)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from coterie.errors import RecipeError
from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollout.forks import Line, lines_of, room, table
from coterie.rollout.place import Place
from coterie.rollout.shared_store import Shared, SharedStore
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@strategy(paper="arXiv:2509.08721", decisions="tokens")
class swarm:
    """Groups rolled out here are shared as text; up to `external` of a batch are ones that other runs have shared.

    External texts are encoded anew, graded by this run's rewards, and their `logp_old` is what this policy gives them:
    they are trained on as if it had sampled them, though it might never have. They are drawn from the newest `keep`
    that came in; where the task has a verifier, not from groups that are all right or all wrong. Where too few came
    in by the step before, more groups are rolled out here: a run that is alone is plain. Groups of another task are
    passed over. With external = 0 it only gives.

    path: a folder or URL that fsspec knows, or redis://HOST:PORT/DATABASE#MEETING; what lies there is taken for prompts
    and answers, never run. patience: seconds for which a store that does not answer is waited for.
    """

    def __init__(self, *, path: str = "", external: int = 4, keep: int = 64, patience: float = 600.0) -> None:
        if not path:
            raise RecipeError("the runs need a place to meet", hint="rollout.strategy.swarm.path=FOLDER_OR_URL")
        self.external, self.keep = external, keep
        self.store = SharedStore(Place(path, patience), uuid.uuid4().hex[:12])
        self.pool: list[Shared] = []
        self.shared = 0

    def to_draw(self, count: int) -> int:
        """New prompts to draw where `count` groups are to come back."""
        return count - min(self.external, count - 1, len(self.pool))

    def __call__(
        self,
        policy: Any,
        prompts: list[Prompt],
        seeds: list[list[int]],
        sampling: Sampling,
        entropy: bool,
        count: int,
        step: int,
        verify: Callable[[Any, Any], bool] | None = None,
    ) -> Rollouts:
        made = policy.rollout(prompts, seeds, sampling, entropy=entropy)
        self._share(made)
        wanted = count - len(prompts)
        order = np.random.default_rng(stream(int(seeds[0][0]), "swarm")).permutation(len(self.pool))
        chosen = [self.pool[int(i)] for i in order[:wanted]]
        record("swarm/external_share", len(chosen) / (len(prompts) + len(chosen)))
        record("swarm/waited", self.store.place.waited)
        self.pool = [group for group in self.pool if not any(group is c for c in chosen)]
        if self.external:
            known = (g for g in self.store.new() if prompts[0].row.keys() <= g.row.keys())  # of the same task
            self.pool = [*self.pool, *(g for g in known if _teaches(g, verify))][-self.keep :]
        return made if not chosen else _together(policy, prompts, made, chosen, sampling, entropy, len(seeds[0]))

    def _share(self, made: Rollouts) -> None:
        groups, ended = made["groups"].tolist(), (~made["truncated"]).tolist()
        rows = [[i for i, g in enumerate(groups) if g == number] for number in range(len(made.prompts))]
        self.store.put(
            self.shared,
            [
                Shared(dict(p.row), tuple(made.texts[i] for i in mine), tuple(ended[i] for i in mine))
                for p, mine in zip(made.prompts, rows, strict=True)
            ],
        )
        self.shared += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "name": self.store.name,
            "shared": self.shared,
            "seen": sorted(self.store.seen),
            "pool": [[g.row, list(g.completions), list(g.ended)] for g in self.pool],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.name, self.shared, self.store.seen = state["name"], state["shared"], set(state["seen"])
        self.pool = [Shared(row, tuple(texts), tuple(ended)) for row, texts, ended in state["pool"]]


def _teaches(group: Shared, verify: Callable[[Any, Any], bool] | None) -> bool:
    if verify is None:
        return len(set(group.completions)) > 1
    return len({bool(verify(text, group.row)) for text in group.completions}) > 1


def _together(
    policy: Any,
    prompts: Sequence[Prompt],
    made: Rollouts,
    chosen: Sequence[Shared],
    sampling: Sampling,
    entropy: bool,
    each: int,
) -> Rollouts:
    """The policy's own rollouts, then at most `each` of every external group, scored by the policy."""
    eos, own = policy.tokenizer.eos_token_id, lines_of(made)
    every = [*prompts, *(Prompt(policy.encode(group.row["prompt"]), group.row) for group in chosen)]
    lines = list(own)
    for number, group in enumerate(chosen, len(prompts)):
        for text, ended in list(zip(group.completions, group.ended, strict=True))[:each]:
            ids = [*policy.encode_completion(text), *([eos] if ended and eos is not None else [])]
            most = room(policy, every[number], sampling)
            tokens = torch.tensor(ids[:most], dtype=torch.long, device=policy.device)
            nothing = torch.zeros(len(tokens), device=policy.device)
            lines.append(Line(number, tokens, nothing == 0, nothing, nothing if entropy else None, not ended))
    out = table(policy, every, lines, sampling)
    columns = {"logp": "logp_old", "entropy": "entropy_old"} if entropy else {"logp": "logp_old"}
    found = {column: out[column].clone() for column in columns.values()}
    theirs = torch.arange(len(own), len(lines), device=policy.device)
    with torch.no_grad():
        for rows in theirs.split(64):
            for name, x in policy.score(out.rows(rows), set(columns)).items():
                found[columns[name]][rows, : x.shape[1]] = x.to(out["logp_old"].dtype)
    return out.with_columns(**found)
