"""Databases that are only read, generated questions, and the partial rewards of Reasoning-SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.api import start
from coterie.environments import Episode
from coterie.environments.database import Database, QueryError, same_result
from coterie.environments.sql import DOMAINS, Sql, make_database, make_question, matches_gold, query_in
from coterie.environments.tool_calls import Call, write
from coterie.recipe import resolve
from coterie.rewards import sql as rewards
from coterie.tasks.base import validate
from coterie.tasks.sql import sql

SCRIPT = "CREATE TABLE t (a INTEGER, b INTEGER, c TEXT); INSERT INTO t VALUES (1, 1, 'x'), (2, 1, 'y'), (3, 0, NULL);"


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE t", "DELETE FROM t", "INSERT INTO t VALUES (1, 1, 'z')", "UPDATE t SET a = 1",
        "ATTACH 'stolen.db' AS s", "PRAGMA writable_schema = 1", "CREATE TABLE u (a)", "VACUUM INTO 'copy.db'",
        "SELECT 1; DROP TABLE t", "SELECT load_extension('x')", "SELECT nothing FROM t", "SELECT", "", "nonsense",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r",
        "SELECT a.a FROM t a, t b, t c, t d, t e, t f, t g",
        "SELECT zeroblob(900000000)", "SELECT replace(hex(zeroblob(50000)), 0, 'aaa')",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000, "SELECT '\ud800'", "SELECT '\0", "x" * 200_000,
    ],
)  # fmt: skip
def test_a_database_is_only_read_and_within_limits(query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database(SCRIPT)
    with pytest.raises(QueryError):
        database.run(query)
    assert database.run("SELECT COUNT(*) FROM t") == [(3,)] and not list(tmp_path.iterdir())


def test_results_are_compared_as_bags_unless_ordered() -> None:
    a: list[tuple[Any, ...]] = [(1, "x"), (2.0, None), (2, None)]
    assert same_result(a, [(2, None), (1.0000000001, "x"), (2, None)], ordered=False)
    assert not same_result(a, a[::-1], ordered=True) and same_result(a, list(a), ordered=True)
    assert not same_result(a, a[:2], ordered=False) and not same_result([("1",)], [(1,)], ordered=False)


def test_every_question_has_a_query_that_runs() -> None:
    rng = np.random.default_rng(0)
    kinds, domains = set(), set()
    for _ in range(120):
        domain, script = make_database(rng, 6)
        question, gold = make_question(rng, domain)
        database = Database(script)
        database.run(gold)
        assert set(database.columns) == set(domain) and matches_gold(gold, {"database": script, "gold": gold})
        assert not matches_gold("SELECT 'none of it'", {"database": script, "gold": gold})
        kinds.add(
            question.split()[0] + ("by" if " by " in question else "") + ("belong" if "belong" in question else "")
        )
        domains.add(next(iter(domain)))
    assert len(kinds) == 6 and len(domains) == len(DOMAINS)


def test_the_world() -> None:
    task = sql(train=20, held_out=10)
    assert (
        validate(task).ok and sql(train=20, held_out=10).train == task.train != sql(train=20, held_out=10, seed=1).train
    )
    assert not {r["question"] + r["database"] for r in task.train} & {
        r["question"] + r["database"] for r in task.held_out
    }
    row = {"prompt": "?", "database": SCRIPT, "gold": "SELECT a FROM t WHERE b = 1"}
    world = Sql()
    world.reset(row)
    said = world.step(write(Call("query", {"sql": "SELECT c FROM t ORDER BY a"}), "hermes"))
    assert said.observation == "\n<tool_response>\nx\ny\nNone\n</tool_response>\n"
    assert "no such column: z" in world.step(write(Call("query", {"sql": "SELECT z FROM t"}), "hermes")).observation
    assert "not authorized" in world.step(write(Call("query", {"sql": "DELETE FROM t"}), "hermes")).observation
    assert world.step("Here:\n```sql\nSELECT a FROM t WHERE c IS NOT NULL;\n```").reward == 1.0
    for wrong in ("SELECT a FROM t", "SELECT q FROM t", "I do not know", ""):
        world.reset(row)
        end = world.step(wrong)
        assert end.done and end.reward == 0.0 and not end.info["success"]
    assert query_in("```\nSELECT 1\n``` then ```sql\nSELECT 2;\n") == "SELECT 2"


def test_partial_rewards() -> None:
    """The catalogue's example; its judge, which gives 1 for the first, is not among ours."""
    gold, pred = "SELECT a FROM t WHERE b = 1", "SELECT a FROM t"
    wrap = "<think>\nhm\n</think>\n<answer>\n```sql\n{}\n```\n</answer>\n"
    texts = [wrap.format(pred), wrap.format(gold), "no query", "select a, b from t where", pred + ";"]
    columns = {"database": [SCRIPT] * 5, "gold": [gold] * 5}
    assert rewards.execution(texts, **columns) == [0, 1, 0, 0, 0]
    assert rewards.syntax(texts, **columns) == [1, 1, 0, 0, 1]
    assert rewards.schema_linking(texts, **columns) == pytest.approx([2 / 3, 1, 0, 1, 2 / 3])
    assert rewards.ngrams(texts, **columns) == pytest.approx([3 / 7, 1, 0, 1 / 5, 3 / 7])
    assert rewards.tags(texts) == pytest.approx([0.5, 0.5, 0, 0, 0])
    assert rewards.tags([texts[0].rstrip("\n")]) == [0.5]  # no line end behind the last tag costs nothing
    assert rewards.tags([texts[0] + "and more"]) == pytest.approx([0.492])
    functions = (rewards.execution, rewards.syntax, rewards.schema_linking, rewards.ngrams)
    weights = (3, 1, 1, 1)
    total = [sum(w * f(texts, **columns)[i] for f, w in zip(functions, weights, strict=True)) + 0.5 for i in (0, 1)]
    assert total == pytest.approx([2.5952, 6.5], abs=1e-4)
    assert rewards.schema_linking(["SELECT 'b' FROM t"], database=[SCRIPT], gold=[gold]) == pytest.approx([1 / 3])


def test_partial_rewards_of_episodes() -> None:
    gold = "SELECT a FROM t"
    ended = Episode(actions=["x"], infos=[{"calls": 0}, {"answer": gold}], done=True)
    under_way, broken = Episode(actions=["SELECT a FROM t"], infos=[{"calls": 1}]), Episode(failed="gone")
    given = {"database": [SCRIPT] * 3, "gold": [gold] * 3, "episode": [ended, under_way, broken]}
    for reward in (rewards.execution, rewards.syntax, rewards.schema_linking, rewards.ngrams):
        assert reward([gold] * 3, **given) == [1.0, 0.0, None]
    assert rewards.tags([gold] * 3, episode=given["episode"]) == [0.0, 0.0, None]


def test_a_run_with_partial_rewards(tmp_path: Path) -> None:
    settings = [
        "task=sql", "task.chat=false", "task.partial=true", "task.train=8", "task.held_out=4", "task.turns=2",
        "task.context=workspace", "model={init: {layers: 1, width: 32, heads: 4, context: 800}}", "threads=1",
        "rollout.max_tokens=48", "rollout.group_size=2", "draw.prompts=2", "log.rollouts_every=0",
        "checkpoint.every=0", "steps=1",
        "evaluation={every: 0, prompts: 1, samples: 1, greedy: false}", "warm_start={steps: 1, batch: 1}",
    ]  # fmt: skip
    rows = start(resolve(method="grpo", overrides=settings), tmp_path / "run", quiet=True).metrics
    assert [row["episode/failed_share"] for row in rows if "reward/mean" in row] == [0.0]
    assert any("reward/schema_linking" in key for row in rows for key in row)
