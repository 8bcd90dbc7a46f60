"""Questions about databases: schemas, data, questions and their queries, all generated; and the world of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from coterie.environments.database import Database, QueryError, same_result
from coterie.environments.tool_calls import Format
from coterie.environments.tool_world import ToolWorld
from coterie.environments.tools import ToolError

# table -> its columns, each with its kind; the last table refers to the two before it
DOMAINS: tuple[dict[str, dict[str, str]], ...] = (
    {"customers": {"name": "name", "city": "city", "age": "small"},
     "products": {"title": "thing", "kind": "colour", "price": "large"},
     "orders": {"customer_id": "customers", "product_id": "products", "amount": "small"}},
    {"students": {"name": "name", "city": "city", "points": "large"},
     "courses": {"title": "thing", "level": "colour", "hours": "small"},
     "enrolments": {"student_id": "students", "course_id": "courses", "grade": "small"}},
    {"authors": {"name": "name", "city": "city", "born": "large"},
     "books": {"title": "thing", "genre": "colour", "pages": "large"},
     "loans": {"author_id": "authors", "book_id": "books", "days": "small"}},
    {"pilots": {"name": "name", "home": "city", "flights": "large"},
     "planes": {"model": "thing", "paint": "colour", "seats": "small"},
     "trips": {"pilot_id": "pilots", "plane_id": "planes", "delay": "small"}},
)  # fmt: skip
WORDS = {
    "name": ("Ada", "Ben", "Cem", "Dora", "Eli", "Fay", "Gus", "Hana", "Ivo", "Jo", "Kim", "Lea"),
    "city": ("Oslo", "Lima", "Rome", "Kyoto", "Accra"),
    "thing": ("Arc", "Bell", "Crown", "Drum", "Echo", "Fern", "Gate", "Hill"),
    "colour": ("red", "blue", "green"),
}


def make_database(rng: np.random.Generator, rows: int) -> tuple[dict[str, dict[str, str]], str]:
    """A domain with `rows` rows a table, and the script that makes it."""
    domain = DOMAINS[int(rng.integers(len(DOMAINS)))]
    lines = []
    for table, columns in domain.items():
        shown = ", ".join(f"{c} {'TEXT' if kind in WORDS else 'INTEGER'}" for c, kind in columns.items())
        lines.append(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {shown});")
        count = rows if table != list(domain)[-1] else 2 * rows
        drawn = {c: _values(rng, kind, count, rows) for c, kind in columns.items()}
        for i in range(count):
            lines.append(f"INSERT INTO {table} VALUES ({', '.join([str(i + 1), *(drawn[c][i] for c in columns)])});")
    return domain, "\n".join(lines)


def _values(rng: np.random.Generator, kind: str, count: int, rows: int) -> list[str]:
    if kind in ("name", "thing"):  # they name a row
        words = [w if i == 0 else f"{w} {i + 1}" for i in range(-(-count // len(WORDS[kind]))) for w in WORDS[kind]]
        return [f"'{words[i]}'" for i in rng.permutation(len(words))[:count].tolist()]
    if kind in WORDS:
        return [f"'{WORDS[kind][i]}'" for i in rng.integers(len(WORDS[kind]), size=count).tolist()]
    top = {"small": 10, "large": 200}.get(kind, rows)
    return [str(i) for i in rng.integers(1, top + 1, count).tolist()]


def make_problem(rng: np.random.Generator, rows: int) -> tuple[dict[str, dict[str, str]], str, str, str]:
    """Domain, database, a question about it and the query that answers it, with something to answer."""
    while True:
        domain, script = make_database(rng, rows)
        question, gold = make_question(rng, domain)
        database = Database(script)
        found = database.run(gold)
        database.close()
        if found and found != [(0,)]:
            return domain, script, question, gold


def make_question(rng: np.random.Generator, domain: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """A question about a domain, and the query that answers it."""
    tables = list(domain)
    table = tables[int(rng.integers(2))]
    columns = domain[table]
    label, category, number = columns
    value = str(rng.choice(WORDS[columns[category]]))
    bound = int(rng.integers(1, 10 if columns[number] == "small" else 200))
    link, kind = tables[2], int(rng.integers(6))
    if kind == 0:
        return (
            f"How many {table} have {category} {value}?",
            f"SELECT COUNT(*) FROM {table} WHERE {category} = '{value}'",
        )
    if kind == 1:
        word, fn = [("largest", "MAX"), ("smallest", "MIN"), ("average", "AVG"), ("total", "SUM")][int(rng.integers(4))]
        return f"What is the {word} {number} of all {table}?", f"SELECT {fn}({number}) FROM {table}"
    if kind == 2:
        return (
            f"List the {label} of {table} with {number} above {bound}.",
            f"SELECT {label} FROM {table} WHERE {number} > {bound}",
        )
    if kind == 3:
        return (
            f"List the {label} of all {table} by {number}, the largest first, and by {label} where that is equal.",
            f"SELECT {label} FROM {table} ORDER BY {number} DESC, {label}",
        )
    if kind == 4:
        return (
            f"For each {category} of {table}, how many {table} are there?",
            f"SELECT {category}, COUNT(*) FROM {table} GROUP BY {category}",
        )
    key = next(c for c, to in domain[link].items() if to == table)
    return (
        f"How many {link} belong to {table} with {category} {value}?",
        f"SELECT COUNT(*) FROM {link} JOIN {table} ON {link}.{key} = {table}.id WHERE {table}.{category} = '{value}'",
    )


def schema_of(domain: Mapping[str, Mapping[str, str]]) -> str:
    """The tables, one a line, for prompts."""
    return "\n".join(f"{table}(id, {', '.join(columns)})" for table, columns in domain.items())


_BLOCK = re.compile(r"```(?:sql|SQL)?\s*(.*?)(?:```|\Z)", re.DOTALL)


def query_in(text: str) -> str:
    """The query in an answer: the last fenced block, else the whole text; without a closing semicolon."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1] if blocks else text).strip().rstrip("; \n")


def matches_gold(query: str, row: Mapping[str, Any]) -> bool:
    """Whether a query gives what the row's own gives, in its order where that orders."""
    database = Database(row["database"])
    try:
        wanted = database.run(row["gold"])
        return same_result(database.run(query), wanted, ordered="ORDER BY" in row["gold"].upper())
    except QueryError:
        return False
    finally:
        database.close()


def query(sql: str, row: Mapping[str, Any]) -> str:
    """Run a SELECT statement on the database and show its rows."""
    database = Database(row["database"])
    try:
        rows = database.run(sql)
    except QueryError as error:
        raise ToolError(str(error)) from None
    finally:
        database.close()
    return "\n".join(" | ".join(map(str, r)) for r in rows) or "no rows"


class Sql(ToolWorld):
    """Rows have `database` (a script) and `gold` (a query). The tool `query` runs statements; the final answer is a
    query, in a fenced block or as it is, and right where it gives what the row's own does."""

    def __init__(self, *, format: Format = "hermes") -> None:
        super().__init__([query], lambda answer, row: float(matches_gold(query_in(answer), row)), format=format)
