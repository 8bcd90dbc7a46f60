"""Mathematical equivalence by the math-verify library."""

from __future__ import annotations

import importlib
import logging

from coterie.errors import RewardError
from coterie.pieces import verifier


@verifier()
def math_verify(completion: str, reference: str, *, precision: int = 6) -> bool:
    """Whether the completion's final expression equals the reference, LaTeX or plain. precision: decimals of floats.

    The library's own time limits use signals and are off; the runner kills a process that takes too long.
    """
    from math_verify import parse, verify

    gold = parse(_delimited(reference), parsing_timeout=None) or parse(reference, parsing_timeout=None)
    if not gold:
        raise RewardError(f"math-verify finds no expression in the reference {reference!r}")
    answer = parse(completion, parsing_timeout=None)
    return bool(verify(gold, answer, float_rounding=precision, timeout_seconds=None))


def _prepare() -> None:
    """Import the library (seconds), and silence its warning that its time limits are off."""
    importlib.import_module("math_verify")
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)


math_verify.may_hang = True
math_verify.prepare = _prepare


def _delimited(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"
