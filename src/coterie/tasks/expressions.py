"""A small exact calculator: + - * / and parentheses over whole numbers, in rational arithmetic, without eval."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = 300, 20, 12
"""Of an expression, its nesting and its numbers: what a completion can make the calculator do is bounded."""
_TOKEN = re.compile(rf"\s*(\d{{1,{MAX_DIGITS}}}(?!\d)|[-+*/()])", re.ASCII)


class NotAnExpression(ValueError):
    """The text is not an expression this calculator takes."""


def tokenize(text: str) -> list[str]:
    """Numbers, operators and parentheses. Raises NotAnExpression on anything else."""
    if len(text) > MAX_LENGTH:
        raise NotAnExpression("too long")
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotAnExpression(f"unexpected {text[position]!r}")
        tokens.append(match.group(1))
        position = match.end()
    return tokens


def numbers_in(text: str) -> list[int]:
    """The whole numbers an expression uses, in order."""
    return [int(t) for t in tokenize(text) if t.isdigit()]


def evaluate(text: str) -> Fraction:
    """The exact value. Raises NotAnExpression on bad syntax or division by zero."""
    tokens = tokenize(text)
    value, rest = _sum(tokens, 0, 0)
    if rest != len(tokens):
        raise NotAnExpression("something follows the expression")
    return value


def _sum(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, depth)
        value, at = (value + right if tokens[at] == "+" else value - right), after
    return value, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _atom(tokens, at + 1, depth)
        if tokens[at] == "/" and right == 0:
            raise NotAnExpression("division by zero")
        value, at = (value * right if tokens[at] == "*" else value / right), after
    return value, at


def _atom(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    if at >= len(tokens) or depth > MAX_DEPTH:
        raise NotAnExpression("an expression ends too early or nests too deep")
    token = tokens[at]
    if token == "-":
        value, after = _atom(tokens, at + 1, depth + 1)
        return -value, after
    if token == "(":
        value, after = _sum(tokens, at + 1, depth + 1)
        if after >= len(tokens) or tokens[after] != ")":
            raise NotAnExpression("a parenthesis is not closed")
        return value, after + 1
    if not token.isdigit():
        raise NotAnExpression(f"unexpected {token!r}")
    return Fraction(int(token)), at + 1
