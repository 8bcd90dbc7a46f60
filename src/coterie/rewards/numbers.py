"""Numbers as people write them: 1,234.50  $12  50%  3/4  -7."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"[-+−]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d[\d,]*)?\s*%?")


def parse_number(text: str) -> Fraction | None:
    """The number a whole string stands for, exactly; None when it is not one. "50%" is 50, "$1,200." is 1200."""
    cleaned = text.strip().replace("−", "-").replace("$", "").replace(",", "").rstrip(".").strip().rstrip("%").strip()
    if not re.fullmatch(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:\s*/\s*\d+)?", cleaned, re.ASCII) or len(cleaned) > 100:
        return None
    top, _, bottom = cleaned.partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top.strip()) / (Fraction(bottom.strip()) if bottom else 1)


def last_number(text: str) -> Fraction | None:
    """The last number in a text, or None."""
    found = _NUMBER.findall(text)
    return parse_number(found[-1]) if found else None


def boxed(text: str) -> str | None:
    r"""What is inside the last \boxed{…}, braces balanced; None where there is none."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, inside = 1, start + len(r"\boxed{")
    for i in range(inside, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[inside:i]
    return None
