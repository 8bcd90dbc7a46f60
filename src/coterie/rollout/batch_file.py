"""A step's rollouts of several agents as one Parquet file: exact numbers and plain data, nothing that is executed."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from coterie.environments.base import Episode
from coterie.errors import RunError
from coterie.rollouts import Prompt, Rollouts, Sampling

AGENT, TEXT, EPISODE, ABOUT = "agent", "text", "played", b"coterie"
"""Columns beside those of the table, and the key of what the file says of itself."""


def written(tables: Mapping[str, Rollouts], about: Mapping[str, Any]) -> bytes:
    """Tables as they were rolled out, by agent, all of the same columns. A row a rollout; those of an agent lie
    together. Of prompts there are the tokens and the index in the task, whose rows all runs have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    said: dict[str, Any] = {**about, "agents": {}}
    parts = []
    for agent, table in tables.items():
        columns: dict[str, Any] = {
            AGENT: pa.array([agent] * len(table)),
            TEXT: pa.array([str(text) for text in table.texts]),
            EPISODE: pa.array([_episode_text(e) for e in table.episodes]),
        }
        widths: dict[str, int] = {}
        for name in table.columns:
            tensor = table[name].cpu()
            columns[name] = pa.array(tensor.flatten().numpy())
            if tensor.dim() == 2:
                widths[name] = tensor.shape[1]
                ends = np.arange(len(tensor) + 1, dtype=np.int32) * tensor.shape[1]
                columns[name] = pa.ListArray.from_arrays(pa.array(ends), columns[name])
        parts.append(pa.table(columns))
        said["agents"][agent] = {
            "prompts": [[list(p.tokens), p.index] for p in table.prompts],
            "sampling": table.sampling.plain(),
            "widths": widths,
        }
    buffer = io.BytesIO()
    if not parts:  # nobody decided anything, which is said too
        parts = [pa.table({AGENT: pa.array([], pa.string())})]
    with pq.ParquetWriter(buffer, parts[0].schema.with_metadata({ABOUT: json.dumps(said).encode()})) as file:
        for part in parts:
            file.write_table(part)
    return buffer.getvalue()


def read(content: bytes, agents: Collection[str]) -> tuple[dict[str, Any], dict[str, Rollouts]]:
    """What was said of a batch, and the tables of some agents; who decided nothing has none. Prompts are without rows.

    Raises RunError where it is no batch.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        about = json.loads(file.schema_arrow.metadata[ABOUT])
    except (pa.ArrowInvalid, ValueError, KeyError, TypeError) as error:
        raise RunError(f"what lies there is no batch of rollouts: {error}", hint="was it put there by hand?") from error
    tables = {}
    for agent in [name for name in about["agents"] if name in agents]:
        rows = pq.read_table(io.BytesIO(content), filters=[(AGENT, "=", agent)])
        tables[agent] = _table(rows, about["agents"][agent])
    return about, tables


def _table(rows: Any, said: Mapping[str, Any]) -> Rollouts:
    columns: dict[str, Any] = {}
    for name in rows.column_names:
        if name in (AGENT, TEXT, EPISODE):
            continue
        values = rows[name].combine_chunks()
        if name in said["widths"]:
            flat = values.flatten().to_numpy(zero_copy_only=False)
            columns[name] = torch.from_numpy(flat.copy()).view(len(rows), said["widths"][name])
        else:
            columns[name] = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())
    prompts = [Prompt(tuple(tokens), {}, index) for tokens, index in said["prompts"]]
    episodes = [Episode(**json.loads(text)) for text in rows[EPISODE].to_pylist()]
    return Rollouts(prompts, columns, Sampling.of(said["sampling"]), rows[TEXT].to_pylist(), episodes=episodes)


def _episode_text(episode: Episode) -> str:
    return json.dumps(asdict(episode), default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not have but worlds often say: numbers and arrays of NumPy."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise RunError(
        f"the world tells something of type {type(value).__name__} (in a step's info or observation), which cannot be "
        "given to another run",
        hint="tell numbers, text, lists and mappings",
    )
