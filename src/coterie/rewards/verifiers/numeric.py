"""The last number of a completion against the reference number."""

from __future__ import annotations

from fractions import Fraction

from coterie.errors import RewardError
from coterie.pieces import verifier
from coterie.rewards.numbers import boxed, last_number, parse_number


def answer_in(completion: str) -> Fraction | None:
    r"""The number a completion answers with: in \boxed{…} where there is one, else its last number."""
    inside = boxed(completion)
    got = parse_number(inside) if inside is not None else None
    return last_number(completion) if got is None else got


@verifier()
def numeric(completion: str, reference: str, *, tolerance: float = 0.0) -> bool:
    r"""Whether the answer equals the reference number: \boxed{…} where there is one, else the last number.

    Compared exactly (commas, $, %, fractions understood) with tolerance 0, else within tolerance * max(1, |reference|).
    """
    want = parse_number(reference)
    if want is None:
        want = last_number(reference)
    if want is None:
        raise RewardError(
            f"the reference {reference!r} is not a number", hint="use another verifier: exact, math_verify"
        )
    got = answer_in(completion)
    return got is not None and abs(got - want) <= tolerance * max(1.0, float(abs(want)))


numeric.answer = lambda completion: str(answer_in(completion))
