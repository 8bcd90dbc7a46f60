"""Random streams keyed by purpose: the same numbers whatever ran before, so a resumed run repeats nothing by chance."""

from __future__ import annotations

import hashlib


def stream(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose, for example stream(seed, "rollout", step, prompt, sample)."""
    text = "/".join(str(k) for k in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
