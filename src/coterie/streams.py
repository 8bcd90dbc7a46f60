"""Random streams keyed by purpose: the same numbers whatever ran before, so a resumed run repeats nothing by chance."""

from __future__ import annotations

from hashlib import blake2b


def stream(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose, for example stream(seed, "rollout", step, prompt, sample)."""
    return _hashed("/".join(map(str, (seed, *keys))))


def streams(count: int, seed: int, *keys: int | str) -> list[int]:
    """stream(seed, *keys, 0), stream(seed, *keys, 1), … of so many."""
    first = "/".join(map(str, (seed, *keys, "")))
    return [_hashed(f"{first}{i}") for i in range(count)]


def _hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
