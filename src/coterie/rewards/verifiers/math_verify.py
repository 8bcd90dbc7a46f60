"""Mathematical equivalence by the math-verify library."""

from __future__ import annotations

import logging

from coterie.pieces import verifier


@verifier()
def math_verify(completion: str, reference: str, *, precision: int = 6) -> bool:
    """Whether the completion's final expression equals the reference, LaTeX or plain. precision: decimals of floats.

    The library's own time limits use signals and are off; the runner kills a process that takes too long.
    """
    from math_verify import parse, verify

    for name in ("math_verify.parser", "math_verify.grader"):  # they warn that the time limits are off
        logging.getLogger(name).setLevel(logging.ERROR)
    gold = parse(_delimited(reference), parsing_timeout=0)
    if not gold:
        gold = parse(reference, parsing_timeout=0)
    return bool(verify(gold, parse(completion, parsing_timeout=0), float_rounding=precision, timeout_seconds=None))


math_verify.may_hang = True


def _delimited(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"
