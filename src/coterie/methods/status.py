"""What the tests have shown of a named method. It is computed from their outcomes, never typed in.

A method is verified only where five kinds of check exist and pass, and nothing has changed since: its YAML and the
source of its pieces have the digest that was verified. `make verify` runs the checks and records them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie import methods, registry
from coterie.recipe import pieces_of

CHECKS = {
    "oracle": "equal to an independent reference",
    "property": "what it reduces to, or another property, as a test",
    "degenerate": "the conformance battery of every piece in its recipe",
    "loop": "a short run through the real loop",
    "page": "its page of documentation",
}
RECORD = methods.FOLDER / "verified.json"


@dataclass(frozen=True)
class Status:
    """`passed`: check -> tests that passed when it was recorded. `changed`: the method is no longer what was tested."""

    slug: str
    passed: Mapping[str, int] = field(default_factory=dict)
    changed: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(check for check in CHECKS if not self.passed.get(check))

    @property
    def verified(self) -> bool:
        return not self.missing and not self.changed

    def __str__(self) -> str:
        if self.verified:
            return "verified"
        if self.changed and not self.missing:
            return "unverified: changed since"
        every = len(self.missing) == len(CHECKS)
        return "unverified" if every else f"unverified: no {', '.join(self.missing)}"


def status(slug: str, record: Mapping[str, Any] | None = None) -> Status:
    """The status of a named method, by what is recorded."""
    entry = (load() if record is None else record).get(slug)
    if entry is None:
        return Status(slug)
    return Status(slug, entry["passed"], changed=entry["digest"] != digest(slug))


def load() -> dict[str, Any]:
    """What is recorded: slug -> {"digest": …, "passed": {check: tests}}."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def digest(slug: str) -> str:
    """Of a method's YAML and the source files of the pieces it names, whatever the line endings."""
    files = {methods.FOLDER / f"{slug}.yaml"}
    for _, bound in pieces_of(methods.load(slug).layer):
        files.add(registry.source(bound.piece))
    found = hashlib.sha256()
    for name, file in sorted((f.relative_to(methods.FOLDER.parent).as_posix(), f) for f in files):
        found.update(name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return found.hexdigest()[:16]
