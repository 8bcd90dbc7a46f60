"""Plain sampling with the task's own answer beside it: an anchor for groups (GRAO, arXiv:2508.07750; DaGRPO)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from coterie.errors import RecipeError
from coterie.pieces import strategy
from coterie.rollout.forks import Line, lines_of, room, table
from coterie.rollouts import Prompt, Rollouts, Sampling


@strategy(paper="arXiv:2508.07750", writes="anchor", decisions="tokens")
def reference_answer(
    policy: Any,
    prompts: list[Prompt],
    seeds: list[list[int]],
    sampling: Sampling,
    entropy: bool,
    reference: Callable[[Mapping[str, Any]], str | None] | None,
) -> Rollouts:
    """One independent rollout a seed, and last in each group the task's demonstration, `anchor`.

    Its tokens end as the policy's own do, and are cut where rollout.max_tokens or the context ends. Its logp_old is the
    policy's, so its ratio is 1 at first. It is graded like any other. rollout.group_size does not count it. A prompt
    whose row has none keeps to its rollouts.
    """
    if reference is None:
        raise RecipeError(
            "the task has no reference answers to put beside the rollouts",
            where="rollout.strategy=reference_answer",
            hint="a task with them; for data files name the column: task.jsonl.solution=COLUMN",
        )
    eos = policy.tokenizer.eos_token_id
    sampled: dict[int, list[Line]] = {}
    for line in lines_of(policy.rollout(prompts, seeds, sampling, entropy=entropy)):
        sampled.setdefault(line.group, []).append(line)
    lines: list[Line] = []
    anchor: list[bool] = []
    for group, prompt in enumerate(prompts):
        lines += (drawn := sampled.get(group, []))
        anchor += [False] * len(drawn)
        text = reference(prompt.row)
        if text is None:
            continue
        ids = [*policy.encode_completion(text), *([] if eos is None else [eos])]
        most = room(policy, prompt, sampling)
        tokens = torch.tensor(ids[:most], dtype=torch.long, device=policy.device)
        nothing = torch.zeros(len(tokens), device=policy.device)
        lines.append(Line(group, tokens, nothing == 0, nothing, nothing if entropy else None, len(ids) > most))
        anchor.append(True)
    made = table(policy, prompts, lines, sampling, anchor=torch.tensor(anchor, device=policy.device))
    columns = {"logp": "logp_old", "entropy": "entropy_old"} if entropy else {"logp": "logp_old"}
    found = {column: made[column].clone() for column in columns.values()}
    with torch.no_grad():
        for row in made["anchor"].nonzero():
            for name, x in policy.score(made.rows(row), set(columns)).items():
                found[columns[name]][row, : x.shape[1]] = x.to(made["logp_old"].dtype)
    return made.with_columns(**found)
