"""A pattern that picks the answer out of a completion."""

from __future__ import annotations

import re

from coterie.pieces import verifier


@verifier()
def regex(completion: str, reference: str, *, pattern: re.Pattern[str] | None = None, group: int = 1) -> bool:
    """Without a pattern: the reference is a regular expression found in the completion. With one: its last match's
    group (the whole match, where the pattern has no groups) must equal the reference.
    """
    if pattern is None:
        return re.search(reference, completion) is not None
    matches = list(re.finditer(pattern, completion))
    which = group if re.compile(pattern).groups else 0
    return bool(matches) and (matches[-1].group(which) or "").strip() == reference.strip()


regex.may_hang = True
"""A pattern can take exponential time; it runs where it can be killed."""
