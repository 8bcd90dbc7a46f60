"""The pytest plugin behind `coterie methods`: which checks of which named methods passed in this run.

    pytest --record-verification    runs the tests that verify methods, and records what passed (make verify)
    pytest                          a whole run fails where more is recorded than it saw

A test verifies methods by its mark, @pytest.mark.oracle("grpo", …) or @pytest.mark.reduction("grpo", …); by being
parametrised by a slug in the files of LOOP and PAGE; or, in the conformance battery, by the pieces it is run on.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MARKS = {"oracle": "oracle", "reduction": "property"}
BATTERY, LOOP, PAGE = "test_conformance.py", "e2e/test_methods.py", "test_docs.py"
PROPERTY = "verifies"
"""Name of the user property in which a test's report carries what it verifies, from xdist's workers too."""
MEND = "make verify"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-verification", action="store_true",
        help="run only the tests that verify named methods, and record what passed (the whole run: make verify)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers only report
        config.pluginmanager.register(Recorder(config), "verification-recorder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties += [(PROPERTY, claim) for claim in sorted(set(verifies(item)))]
    if config.option.record_verification:
        idle = [item for item in items if not any(name == PROPERTY for name, _ in item.user_properties)]
        items[:] = [item for item in items if item not in set(idle)]
        config.hook.pytest_deselected(items=idle)


def verifies(item: pytest.Item) -> Iterator[str]:
    """What a test shows when it passes: 'oracle grpo', 'battery baseline/group_norm', …"""
    for mark, check in MARKS.items():
        for found in item.iter_markers(mark):
            yield from (f"{check} {slug}" for slug in found.args)
    path, callspec = item.path.as_posix(), getattr(item, "callspec", None)
    parameters: dict[str, Any] = callspec.params if callspec else {}
    if path.endswith(f"/{BATTERY}"):
        yield from (f"battery {piece.kind}/{piece.slug}" for v in parameters.values() for piece in pieces_in(v))
    if path.endswith(f"/{LOOP}") and "slug" in parameters:
        yield f"loop {parameters['slug']}"
    if path.endswith(f"/{PAGE}"):
        if "slug" in parameters:
            yield f"page {parameters['slug']}"
        if str(parameters.get("page", "")).startswith("methods/"):
            yield f"page {Path(parameters['page']).stem}"


def pieces_in(value: Any) -> list[Any]:
    """The pieces a parameter of the battery is about: one, or those of an objective or a bound piece."""
    from coterie.pieces import BoundPiece, Piece

    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, BoundPiece):
        value = value.piece
    return [value] if isinstance(value, Piece) else list(getattr(value, "chain", ()))


class Recorder:
    """Collects outcomes by what they verify; records them, or holds them against what is recorded."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.passed: dict[str, set[str]] = defaultdict(set)
        self.failed: set[str] = set()
        self.digests: dict[str, str] = {}
        self.said: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """What is verified is what the files held before the tests ran."""
        from coterie import methods
        from coterie.methods.status import digest

        if self.config.option.record_verification or self.whole:
            self.digests = {slug: digest(slug) for slug in methods.slugs()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        claims = [claim for name, claim in report.user_properties if name == PROPERTY]
        if report.failed:
            self.failed.update(claims)
        elif report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
            for claim in claims:
                self.passed[claim].add(report.nodeid)

    @property
    def whole(self) -> bool:
        """Whether nothing was left out on the command line."""
        option, root = self.config.option, self.config.rootpath
        chosen = {(self.config.invocation_params.dir / a).resolve() for a in self.config.args}
        left_out = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "collectonly")
        return chosen <= {root, root / "tests"} and not any(getattr(option, name, None) for name in left_out)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if not ended or session.shouldfail or session.shouldstop or not self.digests:
            return
        seen = {slug: self.seen(slug) for slug in self.digests}
        if self.config.option.record_verification:
            self.record(seen)
        elif problems := self.problems(seen):
            self.said = [*problems, f"when that is as it should be: {MEND}"]
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif ready := self.unrecorded(seen):
            self.said = [f"verified and not recorded: {', '.join(ready)}; {MEND}"]

    def seen(self, slug: str) -> dict[str, int]:
        """Check -> tests that passed in this run, of the checks of a method that passed."""
        from coterie.methods.status import CHECKS

        wanted = {check: [f"{check} {slug}"] for check in CHECKS}
        wanted["degenerate"] = [f"battery {piece}" for piece in battery(slug)]
        return {
            check: len(set().union(*(self.passed[c] for c in claims)))
            for check, claims in wanted.items()
            if all(self.passed[c] and c not in self.failed for c in claims)
        }

    def record(self, seen: dict[str, dict[str, int]]) -> None:
        """A whole run replaces the record; another one the entries of the methods it saw all checks of."""
        from coterie.methods import status

        old = {} if self.whole else status.load()
        kept = {slug: entry for slug, entry in old.items() if slug in seen}
        new = {
            slug: {"digest": self.digests[slug], "passed": passed}
            for slug, passed in seen.items()
            if passed and (self.whole or len(passed) == len(status.CHECKS))
        }
        text = json.dumps(dict(sorted({**kept, **new}.items())), indent=1) + "\n"
        status.RECORD.write_text(text, encoding="utf-8")
        verified = sum(len(entry["passed"]) == len(status.CHECKS) for entry in new.values())
        self.said = [f"{verified} methods verified, {status.RECORD.name} written"]
        for slug, passed in seen.items():
            if missing := [check for check in status.CHECKS if check not in passed]:
                self.said += [f"  {slug}: no {', '.join(missing)}"] if self.whole else []

    def problems(self, seen: dict[str, dict[str, int]]) -> list[str]:
        """What is recorded and not so."""
        from coterie.methods.status import load

        out = []
        for slug, entry in load().items():
            if slug not in seen:
                out.append(f"{slug} is recorded as verified, and there is no such method")
                continue
            if entry["digest"] != self.digests[slug]:
                out.append(f"{slug} has changed since it was verified")
            if lost := [check for check in entry["passed"] if check not in seen[slug]]:
                out.append(f"{slug} is recorded with checks that did not pass in this run: {', '.join(lost)}")
        for claim in sorted({*self.passed, *self.failed}):
            check, slug = claim.split(" ", 1)
            if check in MARKS.values() and slug not in seen:
                out.append(f"a test of '{check}' is marked with '{slug}', and there is no such method")
        return out

    def unrecorded(self, seen: dict[str, dict[str, int]]) -> list[str]:
        from coterie.methods.status import CHECKS, status

        return [slug for slug, passed in seen.items() if len(passed) == len(CHECKS) and not status(slug).verified]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.said:
            terminalreporter.section("verification of methods")
            for line in self.said:
                terminalreporter.line(line)


def battery(slug: str) -> list[str]:
    """'kind/slug' of the pieces of a method that the battery runs; of its resolved recipe where it names none."""
    from coterie import methods
    from coterie.pieces import TABLE_KINDS
    from coterie.recipe import pieces_of, resolve

    named = pieces_of(methods.load(slug).layer)
    if not any(bound.piece.kind in TABLE_KINDS for _, bound in named):
        named = resolve(method=slug, values={"task": "sort"}).all_bound()
    return [f"{b.piece.kind}/{b.piece.slug}" for _, b in named if b.piece.kind in TABLE_KINDS]
