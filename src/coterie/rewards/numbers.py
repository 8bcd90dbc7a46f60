"""Numbers as people write them: 1,234.50  $12  50%  3/4  -7  6.02e23."""

from __future__ import annotations

import re
from fractions import Fraction

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?"
# A minus after a digit, letter or parenthesis is a subtraction or a dash (20-25), not a sign.
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-+−])?\$?{_PLAIN}(?:\s*/\s*\d[\d,]*)?\s*%?", re.ASCII)
_WHOLE = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,2})?(?:\s*/\s*\d+)?", re.ASCII)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", re.ASCII)
MAX_LENGTH = 100
"""Characters of a number that is read at all: longer ones cost time and are never an answer."""


def parse_number(text: str) -> Fraction | None:
    r"""The number a whole string stands for, exactly; None when it is not one.

    "50%" is 50, "$1,200." is 1200, "3/4" and "\frac{3}{4}" are three quarters.
    """
    cleaned = _LATEX_FRACTION.sub(r"\1/\2", text).replace("−", "-").translate(_DROPPED).strip()
    cleaned = cleaned.rstrip(".").strip().rstrip("%").strip()
    if len(cleaned) > MAX_LENGTH or not _WHOLE.fullmatch(cleaned):
        return None
    top, _, bottom = cleaned.partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top.strip()) / (Fraction(bottom.strip()) if bottom else 1)


_DROPPED = str.maketrans("", "", "$,\\")


def first_number(text: str) -> Fraction | None:
    """The first number in a text, or None."""
    found = _NUMBER.search(_LATEX_FRACTION.sub(r"\1/\2", text))
    return parse_number(found.group()) if found else None


def last_number(text: str) -> Fraction | None:
    """The last number in a text, or None."""
    found = _NUMBER.findall(_LATEX_FRACTION.sub(r"\1/\2", text))
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
