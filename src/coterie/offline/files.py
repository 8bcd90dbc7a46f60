"""Recorded data as it lies on the disk: one table of all files, and what the files say about themselves."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coterie.errors import DataError, did_you_mean
from coterie.tasks.sources import SUFFIXES, load_rows

ABOUT = b"coterie"
"""Key of the metadata that recorded rollouts carry: how they were sampled, weighed and tokenised."""
ORDER = "__row"
"""Number of each row, from 0."""
FILE = "__file"
FIRST = "__first"
"""Number of the first row of the row's file."""
UNREAD = ("pieces", "advantages", "advantage", "weight", "sample")
"""Recorded for people; what is learned is worked out anew."""


def read(written: str | Sequence[str]) -> tuple[Any, list[dict[str, Any]]]:
    """All rows as one pyarrow Table, and the metadata of each file. Columns some files lack are null there.

    written: files, folders, run directories or globs, or the name of a dataset. Raises DataError naming the file.
    """
    import pyarrow as pa

    names = [written] if isinstance(written, str) else list(written)
    tables, about, done = [], [], 0
    for number, source in enumerate(path for name in names for path in find(name)):
        table = _one(source)
        if len(table) == 0:
            raise DataError("there are no rows in it", where=source, hint="leave it out")
        about.append(json.loads((table.schema.metadata or {}).get(ABOUT, b"{}")))
        table = table.replace_schema_metadata(None)
        places = {FILE: number, FIRST: done}
        for name, value in places.items():
            table = table.append_column(name, pa.array([value] * len(table), pa.int64()))
        tables.append(table)
        done += len(table)
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"the files do not fit together: {str(error).splitlines()[0]}", where=", ".join(names),
            hint="a column must be of one type in all of them",
        ) from None  # fmt: skip
    return whole.append_column(ORDER, pa.array(range(done), pa.int64())), about


def find(name: str) -> list[str]:
    """The files a path, folder, run directory or glob stands for, in order; another name is a dataset's."""
    path = Path(name).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            path = path / "rollouts"
        found = sorted(str(p) for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else []
        saved = any((path / n).is_file() for n in ("dataset_info.json", "dataset_dict.json", "state.json"))
        if saved:
            return [name]
        if not found:
            raise DataError(
                "no recorded rollouts in this folder", where=str(path),
                hint="a run records every step with log.rollouts_every=1; files end in " + ", ".join(SUFFIXES),
            )  # fmt: skip
        return found
    if any(c in name for c in "*?["):
        found = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not found:
            raise DataError(f"no file is named like {name}", hint="quote the pattern, and check the path")
        return found
    return [name]


def _one(source: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.endswith(".parquet") and Path(source).is_file():
        try:
            columns = [n for n in pq.read_schema(source).names if n not in UNREAD]
            return pq.read_table(source, columns=columns)
        except pa.ArrowInvalid as error:
            raise DataError(f"not a Parquet file: {str(error).splitlines()[0]}", where=source) from None
    rows = load_rows(source)
    try:
        return pa.Table.from_pylist([{k: v for k, v in dict(row).items() if k not in UNREAD} for row in rows])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"a column is not of one type: {str(error).splitlines()[0]}", where=source,
            hint="text, numbers or messages, the same in every row",
        ) from None  # fmt: skip


def agreed(about: Sequence[dict[str, Any]], key: str, what: str, hint: str) -> Any:
    """What all files that say it say alike, None where none does. Raises DataError where they differ."""
    said = [a[key] for a in about if key in a]
    for other in said:
        if other != said[0]:
            raise DataError(f"the files differ in {what}: {said[0]} and {other}", hint=hint)
    return said[0] if said else None


def require(table: Any, names: Sequence[str], why: str) -> None:
    """Raise DataError for a column that is not there, or that has a row without a value."""
    for name in names:
        if name not in table.column_names:
            known = [n for n in table.column_names if not n.startswith("__")]
            raise DataError(f"there is no column '{name}', {why}", hint=f"{did_you_mean(name, known)}")
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True) + 1
            raise DataError(f"row {row} has nothing in column '{name}', {why}", hint="leave such rows out")
