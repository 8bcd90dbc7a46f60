"""SQLite databases that may be read and nothing else, for queries that a model wrote."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Any

STEPS = 2_000_000
"""Instructions of SQLite's machine that a query may take."""
LONGEST = 100_000
"""Bytes of a value or a query."""
MOST_ROWS = 1000
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


class QueryError(Exception):
    """A query that cannot be run, or not within its limits."""


class Database:
    """A database in memory, made by a script and then only read: no other statements than SELECT, no files, no pragmas,
    bounded in instructions, rows and the size of values."""

    def __init__(self, script: str) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._connection.executescript(script)
        read = "SELECT m.name, p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"
        self.columns: dict[str, list[str]] = {}
        for table, column in self._connection.execute(read):
            self.columns.setdefault(table, []).append(column)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST)
        self._connection.set_authorizer(_authorised)

    @property
    def names(self) -> set[str]:
        """Tables and columns, in lower case."""
        return {n.lower() for table, columns in self.columns.items() for n in (table, *columns)}

    def run(self, query: str) -> list[tuple[Any, ...]]:
        """Its rows. Raises QueryError."""
        left = [STEPS // 1000]

        def spent() -> int:
            left[0] -= 1
            return int(left[0] < 0)

        self._connection.set_progress_handler(spent, 1000)
        try:
            cursor = self._connection.execute(query)
            rows = cursor.fetchmany(MOST_ROWS + 1)
            answers = cursor.description is not None
            cursor.close()
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                raise QueryError("the query takes too long") from None
            raise QueryError(str(error)[:200]) from None
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError) as error:
            raise QueryError(str(error)[:200]) from None
        finally:
            self._connection.set_progress_handler(None, 0)
        if not answers:
            raise QueryError("that is no query")
        if len(rows) > MOST_ROWS:
            raise QueryError(f"the query gives more than {MOST_ROWS} rows")
        return rows

    def close(self) -> None:
        self._connection.close()


def _authorised(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def same_result(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Whether two results hold the same rows, in the same order where that was asked for. Numbers count to 6 places."""
    left, right = ([tuple(map(_plain, row)) for row in rows] for rows in (a, b))
    return left == right if ordered else Counter(left) == Counter(right)


def _plain(value: Any) -> Any:
    return round(float(value), 6) if isinstance(value, int | float) and abs(value) < 2**53 else value
