"""Exact match of text."""

from __future__ import annotations

from coterie.pieces import verifier


@verifier()
def exact(completion: str, reference: str, *, strip: bool = True, ignore_case: bool = False) -> bool:
    """Whether completion and reference are the same text, without white space around them unless strip=false."""
    a, b = (completion.strip(), reference.strip()) if strip else (completion, reference)
    return a.casefold() == b.casefold() if ignore_case else a == b
