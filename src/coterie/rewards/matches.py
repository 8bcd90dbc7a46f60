"""Which tokens of a completion spell what a regular expression finds."""

import itertools
import re
from collections.abc import Sequence

from coterie.errors import RecipeError


def matches(texts: Sequence[str], pattern: str) -> list[bool]:
    """For each token by its text, whether a character of it is in a match of `pattern` in all of them together.

    Raises RecipeError for a pattern that is no regular expression. A match of nothing marks nothing.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"the pattern {pattern!r} is no regular expression: {error}", hint="as in Python's re"
        ) from None
    whole = "".join(texts)
    inside = [False] * len(whole)
    for found in expression.finditer(whole):
        inside[found.start() : found.end()] = [True] * (found.end() - found.start())
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text))
    return [any(inside[a:b]) for a, b in itertools.pairwise(ends)]
