"""Multiple choice."""

from __future__ import annotations

import re

from coterie.pieces import verifier


@verifier()
def choice(completion: str, reference: str, *, letters: str = "ABCDE") -> bool:
    r"""Whether the letter chosen is the reference's: in \boxed{…}, after "answer", in parentheses, or standing alone.

    The last such letter counts, in that order of preference.
    """
    among = f"[{re.escape(letters)}]"
    for pattern in (
        rf"\\boxed\{{\s*({among})\b",
        rf"(?i:answer)\W+(?:is\W+)?({among})\b",
        rf"\(({among})\)",
        rf"\b({among})\b",
    ):
        found = re.findall(pattern, completion)
        if found:
            return found[-1] == reference.strip().strip("().").upper()
    return False
