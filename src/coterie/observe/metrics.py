"""The numbers of a run: one JSON line a step, flushed, and rewound exactly on resume.

A resumed run and an uninterrupted one write the same rows, except for `time/…`, `system/…` and `tokens/per_second`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.errors import RunError
from coterie.observe.files import replacing


class MetricsLog:
    """metrics.jsonl. A row's "step" counts the completed optimisation steps; row 0 is the state before training."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. Raises RunError when the disk does not take it.

        NaN and infinity become null; `metrics/nonfinite` says how many of the row's numbers were, where any was.
        """
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
        if bad := nonfinite(plain):
            plain |= dict.fromkeys(bad) | {"metrics/nonfinite": len(bad)}
        line = json.dumps(plain, allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunError(
                f"the metrics could not be written: {error.strerror}",
                where=str(self.path),
                hint=f"free space on the disk, then `coterie resume {self.path.parent}`",
            ) from error

    def truncate_after(self, step: int) -> None:
        """Drop rows of later steps, and a last line cut short by a crash. Atomic; the kept lines stay as they are."""
        if not self.path.exists():
            return
        kept = "".join(line + "\n" for line, row in self._lines() if row["step"] <= step)
        with replacing(self.path, "the metrics") as temporary:
            temporary.write_text(kept, encoding="utf-8")

    def read(self) -> list[dict[str, Any]]:
        """All complete rows; none when there is no file yet."""
        return [row for _, row in self._lines()]

    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        if not self.path.exists():
            return []
        # split on "\n" alone: a line without its newline was cut short, even if what is there parses
        *lines, _torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        out = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                row["step"] + 0
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"line {number} is not a row of metrics",
                    where=str(self.path),
                    hint="the file was edited or damaged; remove that line",
                ) from error
            out.append((line, row))
        return out


def nonfinite(row: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that are NaN or infinite."""
    return [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
