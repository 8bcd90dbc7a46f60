"""Rollouts as Parquet, a row each: what was asked and answered, what it earned, and what each decision was worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.observe.files import replacing
from coterie.offline.files import ABOUT
from coterie.rollouts import Rollouts


def write(
    path: str | Path,
    rollouts: Rollouts,
    prompt_texts: Sequence[str],
    token_texts: Sequence[Sequence[str]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write one step's rollouts, atomically. Columns the table lacks are left out. They can be learned from again.

    prompt_texts: one a prompt. token_texts: for each row, the text of each of its tokens (the column `pieces`).
    Per-decision columns hold the decisions the policy took (mask on), in order, unpadded. Where other tokens stand
    between them, `ids` has all of them and `decided` says which are decisions. about: kept in the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    table = pa.table(_columns(rollouts, prompt_texts, token_texts))
    if about is not None:
        table = table.replace_schema_metadata({ABOUT: json.dumps(about)})
    with replacing(path, "the rollouts", "free space on the disk, or set log.rollouts_every=0") as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")


def read(path: str | Path) -> list[dict[str, Any]]:
    """The rows of one step, in order."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def _columns(
    rollouts: Rollouts, prompt_texts: Sequence[str], token_texts: Sequence[Sequence[str]] | None
) -> dict[str, Any]:
    import pyarrow as pa

    groups = rollouts["groups"].tolist()
    mask = rollouts["mask"].cpu()
    out: dict[str, Any] = {
        "group": pa.array(groups, pa.int32()),
        "sample": pa.array(_place_in_group(groups), pa.int32()),
        **({"ticket": pa.array(rollouts["ticket"].tolist(), pa.int64())} if "ticket" in rollouts else {}),
        "prompt": [prompt_texts[g] for g in groups],
        "prompt_tokens": pa.array([list(rollouts.prompts[g].tokens) for g in groups], pa.list_(pa.int32())),
    }
    if rollouts.texts:
        out["completion"] = rollouts.texts
    for column, name in (("rewards", "reward"), ("correct", "correct")):
        if column in rollouts:
            out[name] = rollouts[column].tolist()
    if "components" in rollouts:
        out |= {f"reward.{k}": v.tolist() for k, v in rollouts.columns["components"].items()}  # type: ignore[union-attr]
    for column, name in (("advantages", "advantage"), ("weights", "weight")):
        if column in rollouts:
            out[name] = _row_means(rollouts[column].cpu(), mask)
    for column, name in (("lengths", "length"), ("truncated", "truncated")):
        if column in rollouts:
            out[name] = rollouts[column].tolist()
    lists = [("tokens", pa.int32()), ("logp_old", pa.float32()), ("entropy_old", pa.float32()),
             ("version", pa.int32()), ("turn", pa.int32())]  # fmt: skip
    if "advantages" in rollouts and rollouts["advantages"].dim() == 2:
        lists.append(("advantages", pa.float32()))
    for name, kind in lists:
        if name in rollouts:
            values = rollouts[name].detach().cpu()
            out[name] = pa.array([v[m].tolist() for v, m in zip(values, mask, strict=True)], pa.list_(kind))
    for name, kind in (("step_rewards", pa.float32()), ("state_key", pa.int64())):
        if name in rollouts:
            out[name] = pa.array(rollouts[name].tolist(), pa.list_(kind))
    for name in ("parent", "branch"):
        if name in rollouts:
            out[name] = rollouts[name].tolist()
    out |= _with_gaps(rollouts, mask)
    if token_texts is not None:
        out["pieces"] = pa.array([list(row) for row in token_texts], pa.list_(pa.string()))
    return out


def _with_gaps(rollouts: Rollouts, mask: Tensor) -> dict[str, Any]:
    """`ids` and `decided`, where a row has tokens before its last decision that are none."""
    import pyarrow as pa

    last = (mask * torch.arange(1, mask.shape[1] + 1)).amax(-1).tolist()
    if "tokens" not in rollouts or last == mask.sum(-1).tolist():
        return {}
    rows = list(zip(rollouts["tokens"].tolist(), mask.tolist(), last, strict=True))
    return {
        "ids": pa.array([ids[:n] for ids, _, n in rows], pa.list_(pa.int32())),
        "decided": pa.array([chosen[:n] for _, chosen, n in rows], pa.list_(pa.bool_())),
    }


def _row_means(values: Tensor, mask: Tensor) -> list[float]:
    """[B] as it is; [B,T] averaged over the decisions taken (0 where there are none)."""
    if values.dim() == 2:
        values = values.double().masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    return values.tolist()


def _place_in_group(groups: list[int]) -> list[int]:
    seen: dict[int, int] = {}
    places = []
    for g in groups:
        places.append(seen.get(g, 0))
        seen[g] = places[-1] + 1
    return places
