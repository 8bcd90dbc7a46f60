"""Rows from wherever people keep them: JSONL, JSON, Parquet, CSV, saved datasets, the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coterie.errors import DataError, did_you_mean

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def load_rows(source: str, *, split: str = "train", config: str | None = None) -> Sequence[dict[str, Any]]:
    """Rows of a data file, a folder saved by `datasets` (or of files named by split), or a hub dataset.

    Raises DataError naming file and line. Only a name that is neither a file nor a folder is asked of the hub.
    """
    path = Path(source).expanduser()
    if path.is_file():
        rows = _read_file(path)
    elif path.is_dir():
        rows = _read_folder(path, split)
    elif path.suffix in SUFFIXES or source.startswith((".", "/", "~")):
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no such file: {source}", hint=did_you_mean(path.name, near) if near else "check the path")
    else:
        rows = _from_hub(source, split, config)
    if len(rows) == 0:
        raise DataError("there are no rows in it", where=source)
    return rows


def _read_file(path: Path) -> Sequence[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(f"not a Parquet file: {str(error).splitlines()[0]}", where=str(path)) from None
    readers = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise DataError(f"cannot read '{path.suffix}' files", where=str(path), hint=f"one of {', '.join(SUFFIXES)}")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason}", where=str(path), hint="convert it to UTF-8") from None


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{len(reader.fieldnames or ())} columns are named, this row has another number",
                        where=f"{path}:{reader.line_num}", hint="quote fields that hold a comma",
                    )  # fmt: skip
                rows.append(row)
            return rows
        except csv.Error as error:
            raise DataError(f"not valid CSV: {error}", where=f"{path}:{reader.line_num}") from None


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DataError("expected a list of objects", where=str(path), hint='[{"prompt": …}, …], or use .jsonl')
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.strip())
            except json.JSONDecodeError as error:
                raise DataError(
                    f"not valid JSON: {error.msg} at column {error.colno}", where=f"{path}:{number}",
                    hint='each line is one object, {"prompt": …}',
                ) from None  # fmt: skip
            if not isinstance(row, dict):
                raise DataError(f"expected an object, got {type(row).__name__}", where=f"{path}:{number}")
            rows.append(row)
    return rows


def _read_folder(path: Path, split: str) -> Sequence[dict[str, Any]]:
    for suffix in SUFFIXES:
        if (path / f"{split}{suffix}").is_file():
            return _read_file(path / f"{split}{suffix}")
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        import datasets

        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise DataError(f"no split '{split}'", where=str(path), hint=did_you_mean(split, saved))
            return saved[split]
        return saved
    raise DataError(
        "neither a folder saved by `datasets` nor one of data files", where=str(path),
        hint=f"it should hold {split}.jsonl, {split}.parquet … or be made by Dataset.save_to_disk",
    )  # fmt: skip


def _from_hub(name: str, split: str, config: str | None) -> Sequence[dict[str, Any]]:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"'{name}' is no file or folder here, and the hub did not give it: {str(error).splitlines()[0]}",
            hint="check the spelling and the network, or give a local path",
        ) from None
