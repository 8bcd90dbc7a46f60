"""Multiple choice with several right letters (TW-GRPO, arXiv:2505.24718)."""

from __future__ import annotations

import re

from coterie.errors import RewardError
from coterie.pieces import verifier


@verifier(paper="arXiv:2505.24718")
def multi_choice(completion: str, reference: str, *, letters: str = "ABCDE") -> float:
    r"""The share of the reference's letters that were chosen; 0 as soon as a wrong one was, or none.

    The letters chosen are those in the last \boxed{…}, or else the last <answer>…</answer>, or else on the line after
    the last "answer", or else those of a completion that holds nothing but letters: "A, C", "A and C" or "AC". As a
    verdict, a share above one half counts as correct.
    """
    right = _letters(reference, letters)
    if not right:
        raise RewardError(f"the reference {reference!r} names none of the letters {letters}", hint="set 'letters'")
    chosen = _letters(_answer(completion), letters)
    return len(chosen) / len(right) if chosen <= right else 0.0


def _answer(completion: str) -> str:
    for pattern in (r"\\boxed\{([^{}]*)\}", r"(?is)<answer>(.*?)</answer>", r"(?i)answer\W+(?:is\b|are\b)?([^\n]*)"):
        found = re.findall(pattern, completion)
        if found:
            return found[-1]
    return completion


def _letters(text: str, letters: str) -> frozenset[str]:
    """The letters of a list of letters, none where the text is anything else."""
    words = re.sub(r"\b(?:and|or)\b|[\s,;.:()&/]+", " ", text.strip()).split()
    together = "".join(words)
    return frozenset(together) if set(together) <= set(letters) else frozenset()
