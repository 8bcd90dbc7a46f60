"""The status of methods is computed from the outcomes of tests, and a record of more than that fails a whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from verification import battery

from coterie import methods
from coterie.methods import status as module
from coterie.methods.status import CHECKS, Status, digest, status

ALL = dict.fromkeys(CHECKS, 2)
TESTS = Path(__file__).parent


class TestStatus:
    def test_without_a_record_it_is_unverified(self) -> None:
        found = status("grpo", {})
        assert not found.verified and found.missing == tuple(CHECKS) and str(found) == "unverified"

    def test_all_five_checks_make_it_verified(self) -> None:
        found = status("grpo", {"grpo": {"digest": digest("grpo"), "passed": ALL}})
        assert found.verified and str(found) == "verified"

    @pytest.mark.parametrize("check", CHECKS)
    def test_each_check_is_needed(self, check: str) -> None:
        for passed in ({c: n for c, n in ALL.items() if c != check}, {**ALL, check: 0}):
            found = Status("grpo", passed)
            assert not found.verified and found.missing == (check,) and str(found) == f"unverified: no {check}"

    def test_an_edited_method_falls_back(self) -> None:
        found = status("grpo", {"grpo": {"digest": "another", "passed": ALL}})
        assert not found.verified and str(found) == "unverified: changed since"

    @pytest.fixture
    def copies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
        """Digests read copies of the package's files, which may be edited."""
        package = methods.FOLDER.parent
        monkeypatch.setattr(methods, "FOLDER", tmp_path / "methods")
        original = module.registry.source

        def copy(file: Path) -> Path:
            there = tmp_path / file.relative_to(package)
            if not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(file.read_bytes())
            return there

        monkeypatch.setattr(module.registry, "source", lambda piece: copy(original(piece)))
        return lambda path: copy(package / path)

    @pytest.mark.parametrize("file", ["methods/dapo.yaml", "rewards/shaping/soft_overlong.py", "credit/group_norm.py"])
    def test_the_digest_is_of_the_page_and_of_every_piece(self, file: str, copies: Callable[[str], Path]) -> None:
        copies("methods/dapo.yaml")
        before = digest("dapo")
        path = copies(file)
        text = path.read_bytes()
        path.write_bytes(text.replace(b"\n", b"\r\n"))
        assert digest("dapo") == before
        path.write_bytes(text + b"\n")
        assert digest("dapo") != before

    def test_the_digest_is_not_of_another_methods_pieces(self, copies: Callable[[str], Path]) -> None:
        copies("methods/dapo.yaml")
        before = digest("dapo")
        copies("credit/leave_one_out.py").write_text("", encoding="utf-8")
        assert digest("dapo") == before

    def test_the_record_names_checks_that_there_are(self) -> None:
        for entry in module.load().values():
            assert set(entry["passed"]) <= set(CHECKS) and all(n > 0 for n in entry["passed"].values())


def test_the_command_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from coterie.cli import inspect

    record = {
        "grpo": {"digest": digest("grpo"), "passed": ALL},
        "rloo": {"digest": digest("rloo"), "passed": {"loop": 2, "page": 3}},
    }
    monkeypatch.setattr(module, "RECORD", tmp_path / "verified.json")
    module.RECORD.write_text(json.dumps(record), encoding="utf-8")
    inspect.list_methods(as_json=True)
    listed = {m["slug"]: m for m in json.loads(capsys.readouterr().out)}
    assert listed["grpo"]["status"] == "verified" and listed["grpo"]["checks"] == ALL
    assert listed["rloo"]["status"] == "unverified"
    assert listed["rloo"]["missing"] == ["oracle", "property", "degenerate"]
    assert listed["dapo"]["status"] == "unverified" and not listed["dapo"]["changed_since"]
    inspect.show_method("rloo", as_json=False)
    shown = capsys.readouterr().out
    assert "unverified: no oracle, property, degenerate" in shown and "loop: 2 tests passed" in shown


def test_the_battery_of_a_method_without_table_pieces_is_its_resolved_recipes(tmp_path: Path) -> None:
    assert battery("kl") == ["term/kl"]
    bare = [s for s in methods.slugs() if not any(k in methods.load(s).layer.tree for k in ("credit", "objective"))]
    for slug in bare:
        assert battery(slug), slug


# The plugin, on a folder of tests laid out as ours: what it sees, what it records, and when a whole run fails.

CONFTEST = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import coterie.methods.status as status
status.RECORD = Path(__file__).parents[1] / "verified.json"
pytest_plugins = ["verification"]
"""
LAYOUT = {
    "test_conformance.py": """
import pytest
from coterie.registry import get
PIECES = [get("baseline", "group_norm"), get("baseline", "leave_one_out")]

@pytest.mark.parametrize("piece", PIECES, ids=lambda p: p.slug)
def test_battery(piece): pass

def objective(*chain):
    value = lambda: None
    value.chain = chain
    return value

@pytest.mark.parametrize("value", [objective(get("ratio", "token"), get("trust_region", "ppo_clip"))])
def test_objective(value): pass

@pytest.mark.parametrize("aggregation", [get("aggregation", "sequence").bind({})])
def test_aggregation(aggregation): pass
""",
    "e2e/test_methods.py": """
import pytest

@pytest.mark.parametrize("slug", ["grpo", "rloo"])
def test_loop(slug): assert slug != "rloo"
""",
    "test_docs.py": """
import pytest

@pytest.fixture
def page(request): return request.param

@pytest.mark.parametrize("page", ["methods/grpo.md", "index.md"], indirect=True)
def test_page(page): pass
""",
    "test_maths.py": """
import pytest

@pytest.mark.oracle("grpo", "rloo")
def test_oracle(): pass

@pytest.mark.reduction("grpo")
@pytest.mark.parametrize("i", range(3))
def test_property(i): pass

@pytest.mark.reduction("dapo")
def test_skipped(): pytest.skip("not here")

def test_something_else(): pass
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {"conftest.py": CONFTEST.format(tests=str(TESTS)), **LAYOUT}.items():
        path = tmp_path / "tests" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
    ini = 'testpaths = ["tests"]\nmarkers = ["oracle(*slugs): o", "reduction(*slugs): r"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{ini}", encoding="utf-8")
    return tmp_path


def run(project: Path, *arguments: str) -> tuple[int, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *arguments],
        cwd=project, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    return answer.returncode, answer.stdout + answer.stderr


def recorded(project: Path) -> dict[str, Any]:
    return json.loads((project / "verified.json").read_text(encoding="utf-8"))


def test_a_whole_run_records_what_passed_also_with_workers(project: Path) -> None:
    code, said = run(project, "--record-verification", "-n", "2")
    assert code == 1, said  # rloo's loop fails
    want = {"oracle": 1, "property": 3, "degenerate": 3, "loop": 1, "page": 1}
    assert recorded(project)["grpo"] == {"digest": digest("grpo"), "passed": want}
    assert set(recorded(project)["rloo"]["passed"]) == {"oracle"}  # its loss is in no test of the battery
    assert "dapo" not in recorded(project)
    assert "1 methods verified" in said and "rloo: no property, degenerate, loop, page" in said
    assert "test_something_else" not in said


def test_a_record_of_more_than_was_seen_fails_a_whole_run_only(project: Path) -> None:
    (project / "tests/e2e/test_methods.py").write_text("def test_nothing(): pass\n", encoding="utf-8")
    claim = {"digest": digest("grpo"), "passed": ALL}
    stale = {"digest": "stale", "passed": {"page": 1}}
    (project / "verified.json").write_text(json.dumps({"grpo": claim, "dapo": stale, "gone": stale}), encoding="utf-8")
    maths = project / "tests/test_maths.py"
    maths.write_text(maths.read_text(encoding="utf-8").replace('"rloo"', '"rlo"'), encoding="utf-8")
    code, said = run(project)
    assert code == 1 and "make verify" in said, said
    assert "marked with 'rlo', and there is no such method" in said
    assert "grpo is recorded with checks that did not pass in this run: loop" in said
    assert "dapo has changed since it was verified" in said
    assert "gone is recorded as verified, and there is no such method" in said
    assert run(project, "tests/test_maths.py")[0] == 0


def test_part_of_a_run_updates_the_methods_it_saw_whole(project: Path) -> None:
    kept = {"digest": "old", "passed": {"page": 1}}
    (project / "verified.json").write_text(json.dumps({"rloo": kept, "grpo": kept}), encoding="utf-8")
    code, said = run(project, "--record-verification", "-k", "not rloo")
    assert code == 0, said
    assert recorded(project)["rloo"] == kept and set(recorded(project)["grpo"]["passed"]) == set(CHECKS)
