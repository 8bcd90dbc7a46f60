"""What independent runs exchange as text: groups in Parquet, at a place where they meet."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.rollout.place import Place


@dataclass(frozen=True)
class Shared:
    """What is shared of a group: the task's row, its completions as text, and which of them ended by themselves."""

    row: dict[str, Any]
    completions: tuple[str, ...]
    ended: tuple[bool, ...]


@dataclass
class SharedStore:
    """Files `NAME-NUMBER.parquet` at a place, one a step of the run NAME."""

    place: Place
    name: str
    seen: set[str] = field(default_factory=set)
    """Files that were read, or were there before the run was."""

    def put(self, number: int, groups: Sequence[Shared]) -> None:
        """Let others have these groups."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                "row": [json.dumps(g.row, ensure_ascii=False, default=str) for g in groups],
                "completions": pa.array([list(g.completions) for g in groups], pa.list_(pa.string())),
                "ended": pa.array([list(g.ended) for g in groups], pa.list_(pa.bool_())),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.place.put(f"{self.name}-{number:08d}.parquet", buffer.getvalue())

    def new(self) -> list[Shared]:
        """Groups of other runs that were not read before. A file that is gone is passed over."""
        import pyarrow.parquet as pq

        found: list[Shared] = []
        others = {n for n in self.place.names() if n.endswith(".parquet") and not n.startswith(f"{self.name}-")}
        for file in sorted(others - self.seen):
            content = self.place.get(file)
            if content is not None:
                rows = pq.read_table(io.BytesIO(content)).to_pylist()
                found += [Shared(json.loads(r["row"]), tuple(r["completions"]), tuple(r["ended"])) for r in rows]
            self.seen.add(file)
        return found
