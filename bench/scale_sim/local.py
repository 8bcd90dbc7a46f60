"""What Coterie's own engine does when it decodes, in the order in which it does it (`coterie.rollout.engines.local`).

Rows that have ended are decoded on until they are an eighth of their block; then they leave it. Rows that wait come in
once an eighth of all places is free: their prompts are encoded in one pass, and they join a block where that does not
make most of it padding. All rows of a block have as many slots as the one that began first.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bench.scale_sim.simulate import Costs, Engine, Group

WORTH_MOVING = 8
FREE = 64
"""Slots of padding that are cheaper than another block, whatever stands beside them."""


@dataclass(frozen=True)
class LocalCosts(Costs):
    """Seconds of what only this engine does."""

    shared: float = 0.0
    """a decode step, more for each slot of a prompt and row that attends to it"""
    encode: float = 0.0
    """a pass that encodes prompts, however many"""
    move: float = 0.0
    """a slot written anew, because rows leave or come"""


class Row(NamedTuple):
    """When it ends and when it began, in steps decoded."""

    end: float
    start: float
    group: int


class Block:
    """Rows decoded side by side, those that have ended and not left included; and the prompts that it holds."""

    def __init__(self, rows: list[Row], prompts: int) -> None:
        members = Counter((r.group, r.start) for r in rows)
        self.rows, self.first = rows, min(r.start for r in rows)
        self.prompts = len(members) if 2 * len(members) < prompts else prompts
        self.places = self.prompts * max(members.values())

    def tokens(self, decoded: float) -> float:
        return sum(decoded - r.start for r in self.rows)

    def slots(self, decoded: float) -> float:
        return len(self.rows) * (decoded - self.first)


class LocalEngine(Engine):
    """One call of `generate`, all of whose prompts have one length. Cached tokens are no limit here."""

    costs: LocalCosts

    def __init__(self, costs: LocalCosts, prompt: int) -> None:
        super().__init__(costs, prompt)
        self.blocks: list[Block] = []

    def _admit(self) -> None:
        if self.running and self.running[0][0] <= self.decoded:
            return  # others end in the same step
        self._part()
        room = self.costs.rows - sum(len(b.rows) for b in self.blocks)
        if not self.waiting or (self.blocks and room * WORTH_MOVING < self.costs.rows):
            return
        known: list[Row] = []
        """of a prompt that was encoded for others of its group"""
        fresh: list[Row] = []
        start = self.decoded + bool(self.blocks)  # those there take a step first; the pass gives the first token
        prompts = 0
        for _ in range(min(room, len(self.waiting))):
            group, row, encode = self.waiting.popleft()
            end = start + group.lengths[row] - 1
            heapq.heappush(self.running, (end, next(self.order), group, row))
            prompts += encode > 0
            (fresh if prompts else known).append(Row(end, start, group.number))
            self.now += encode * self.costs.prefill
        self.now += self.costs.encode if prompts else 0.0
        self._join([Block(rows, n) for rows, n in ((known, 1), (fresh, prompts)) if rows])

    def _part(self) -> None:
        """Rows that have ended leave their block, if that is worth it."""
        blocks = []
        for block in self.blocks:
            left = [r for r in block.rows if r.end > self.decoded]
            if left and (len(block.rows) - len(left)) * WORTH_MOVING >= len(block.rows):
                self._write(len(left) * (self.decoded - block.first))
                block = Block(left, block.prompts)
            if left:
                blocks.append(block)
        self.blocks = []
        self._join(blocks)

    def _join(self, blocks: Iterable[Block]) -> None:
        """Blocks of which some have become one."""
        for block in blocks:
            for i, before in enumerate(self.blocks):
                rows = before.rows + block.rows
                first = min(before.first, block.first)
                tokens = before.tokens(self.decoded) + block.tokens(self.decoded)
                if len(rows) * (self.decoded - first) <= 2 * tokens + FREE * len(rows):
                    self.blocks[i] = both = Block(rows, before.prompts + block.prompts)
                    self._write(both.slots(self.decoded))
                    break
            else:
                self.blocks.append(block)

    def _write(self, slots: float) -> None:
        """Keys and values, once to where they are next to each other and once to where there is room for more."""
        self.now += 2 * slots * self.costs.move

    def _pace(self) -> tuple[float, float]:
        c, rows = self.costs, sum(len(b.rows) for b in self.blocks)
        slots = sum(b.slots(self.decoded) for b in self.blocks)
        shared = sum(b.places for b in self.blocks) * self.prompt
        return c.step + rows * c.row + shared * c.shared + slots * c.slot, rows * c.slot


def generation(costs: LocalCosts, prompt: int, groups: list[list[int]]) -> float:
    """Seconds of one call."""
    engine = LocalEngine(costs, prompt)
    engine.add(*(Group(number, lengths) for number, lengths in enumerate(groups)))
    while engine.running:
        engine.advance()
    return engine.now
