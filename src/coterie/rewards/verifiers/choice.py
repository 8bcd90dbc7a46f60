"""Multiple choice."""

from __future__ import annotations

import re

from coterie.errors import RewardError
from coterie.pieces import verifier


@verifier()
def choice(completion: str, reference: str, *, letters: str = "ABCDE") -> bool:
    r"""Whether the letter chosen is the reference's: in \boxed{…}, after "answer", in parentheses, or standing alone.

    The last such letter counts, in that order of preference.
    """
    right = reference.strip().strip("().").upper()
    if len(right) != 1 or right not in letters:
        raise RewardError(f"the reference {reference!r} is none of the letters {letters}", hint="set 'letters'")
    among = f"[{re.escape(letters)}]"
    for pattern in (
        rf"\\boxed\{{\s*({among})\b",
        rf"(?i:answer)\W+(?:is\W+)?({among})\b",
        rf"\(({among})\)",
        rf"\b({among})\b",
    ):
        found = re.findall(pattern, completion)
        if found:
            return found[-1] == right
    return False
