"""Token F1 of question answering (SQuAD, arXiv:1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter

from coterie.pieces import verifier


@verifier(paper="arXiv:1606.05250")
def f1(completion: str, reference: str) -> float:
    """F1 of the words shared by completion and reference, without case, punctuation and articles; in [0, 1].

    As a verdict, an F1 above one half counts as correct.
    """
    got, want = _words(completion), _words(reference)
    if not got or not want:
        return float(got == want)
    shared = sum((Counter(got) & Counter(want)).values())
    return 2 * shared / (len(got) + len(want))


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()
