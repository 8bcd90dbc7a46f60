"""APRIL (arXiv:2509.18521): rollouts of given lengths take a token a tick each until enough groups have ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Oven:
    """Rollouts under way: tokens wanted and had, by prompt; and by which step each token was taken."""

    cap: int
    wanted: dict[int, list[int]] = field(default_factory=dict)
    taken: dict[int, list[list[int]]] = field(default_factory=dict)

    def step(self, number: int, new: dict[int, list[int]], enough: int) -> list[int]:
        """Put new groups in, bake until `enough` are done, and take those out: the prompts, earliest first."""
        for prompt, lengths in new.items():
            self.wanted[prompt] = [min(n, self.cap) for n in lengths]
            self.taken[prompt] = [[] for _ in lengths]
        while len(self._done()) < min(enough, len(self.wanted)):
            for prompt, lengths in self.wanted.items():
                for row, length in enumerate(lengths):
                    if len(self.taken[prompt][row]) < length:
                        self.taken[prompt][row].append(number)
        out = self._done()[:enough]
        for prompt in out:
            del self.wanted[prompt]
        return out

    def _done(self) -> list[int]:
        return [p for p, w in self.wanted.items() if all(len(t) == n for t, n in zip(self.taken[p], w, strict=True))]
