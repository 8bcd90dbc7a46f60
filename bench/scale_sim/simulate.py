"""Discrete-event simulation of generation, training and weight sync. Time is in seconds, events are ends of rollouts.

A worker that decodes n rows takes `step + n row + slot` times their tokens so far for one more token of each. Between
two ends of rollouts that grows evenly, so a worker's clock jumps from one end to the next: the cost is a heap operation
a rollout, not a token. `bench.scale_sim.local` has what Coterie's own engine does beyond that.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Costs:
    """Seconds on one worker."""

    step: float = 0.0
    """a decode step, however many rows it has"""
    row: float = 0.0
    """more for each row in it"""
    slot: float = 0.0
    """more for each slot of completions that rows attend to"""
    prefill: float = 0.0
    """a token of a prompt encoded"""
    learn: float = 0.0
    """a token through forward and backward"""
    pair: float = 0.0
    """more for each token and token that it attends to"""
    update: float = 0.0
    """an optimizer step, communication included"""
    sync: float = 0.0
    """new weights into an engine"""
    exchange: float = 0.0
    """what the training workers exchange in one pass over the model; it overlaps with the pass"""
    rows: int = 256
    """decoded at once at the most"""
    micro: int = 2**14
    """tokens of a pass over the model"""


@dataclass(frozen=True)
class Work:
    groups: int
    """a step"""
    size: int
    """rollouts a group"""
    prompt: int
    shared: bool = True
    """Whether training encodes a group's prompt once."""

    def tokens(self, lengths: list[int]) -> int:
        """Those that training runs through the model for one group."""
        return self.prompt * (1 if self.shared else len(lengths)) + sum(lengths)

    def pairs(self, lengths: list[int]) -> float:
        """How often a token attends to a token, in training one group."""
        prompts = 1 if self.shared else len(lengths)
        return prompts * self.prompt**2 / 2 + sum(n * (self.prompt + n / 2) for n in lengths)


Draw = Callable[[], list[int]]
"""The lengths of the next group's rollouts."""


@dataclass(order=True)
class Group:
    number: int
    lengths: list[int] = field(compare=False)
    born: int = field(compare=False, default=0)
    """the weights' version when it was started"""
    left: int = field(compare=False, default=0)
    done: list[int] = field(compare=False, default_factory=list)
    """tokens of each rollout that an earlier step has decoded"""


class Engine:
    """One worker's decoding with continuous batching: rows that end make room for rows that wait."""

    def __init__(self, costs: Costs, prompt: int) -> None:
        self.costs, self.prompt = costs, prompt
        self.now = self.decoded = 0.0
        self.waiting: deque[tuple[Group, int, int]] = deque()
        self.running: list[tuple[float, int, Group, int]] = []
        self.order = itertools.count()
        self.begun = 0.0
        """the sum over rows of what `decoded` was, or would have been, when they had no token"""

    def add(self, *groups: Group) -> None:
        """Groups' rows that have not ended; what they had before is encoded again with the prompt."""
        for group in groups:
            group.done = group.done or [0] * len(group.lengths)
            rows = [r for r, length in enumerate(group.lengths) if group.done[r] < length]
            group.left = len(rows)
            for row in rows:
                again = group.done[row] + (self.prompt if row == rows[0] else 0)
                self.waiting.append((group, row, again))
        self._admit()

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.costs.rows:
            group, row, encode = self.waiting.popleft()
            self.now += encode * self.costs.prefill
            self.begun += self.decoded - group.done[row]
            end = self.decoded + group.lengths[row] - group.done[row]
            heapq.heappush(self.running, (end, next(self.order), group, row))

    def _pace(self) -> tuple[float, float]:
        """Seconds for a token of each row now, and by how much that grows with a token."""
        rows, c = len(self.running), self.costs
        held = rows * self.decoded - self.begun
        return c.step + rows * c.row + held * c.slot, rows * c.slot

    def next_end(self) -> float:
        """When the next rollout ends."""
        if not self.running:
            return float("inf")
        tokens, (pace, growth) = self.running[0][0] - self.decoded, self._pace()
        return self.now + tokens * (pace + tokens * growth / 2)

    def advance(self) -> Group | None:
        """Go to that end; the group, if it was its last."""
        self.now = self.next_end()
        self.decoded, _, group, row = heapq.heappop(self.running)
        self.begun -= self.decoded - group.lengths[row]
        group.left, group.done[row] = group.left - 1, group.lengths[row]
        self._admit()
        return None if group.left else group

    def pause(self, until: float) -> None:
        """Go to a moment before the next end: rows in flight are as far as their pace has brought them."""
        if self.running and self.now < until:
            left, (pace, growth) = until - self.now, self._pace()
            tokens = 2 * left / (pace + math.sqrt(pace**2 + 2 * growth * left))
            self.decoded = min(self.running[0][0], self.decoded + tokens)
        self.now = max(self.now, until)

    def stop(self) -> list[Group]:
        """Take every group out that has not ended, with the tokens that its rollouts have."""
        for end, _, group, row in self.running:
            group.done[row] = max(group.done[row], group.lengths[row] - math.ceil(end - self.decoded))
        found = {g.number: g for g in [r[2] for r in self.running] + [w[0] for w in self.waiting]}
        self.running, self.waiting, self.begun = [], deque(), 0.0
        return list(found.values())


@dataclass(frozen=True)
class Outcome:
    seconds: float
    """a step, over the steps that count"""
    trained: int
    """rollouts a step"""
    stale: float
    """versions that the weights have moved on, the mean over groups, from their start to their training"""
    idle: float
    """the share of time for which generating workers had nothing to do"""


def learning(costs: Costs, work: Work, groups: list[Group], workers: int) -> float:
    """Seconds of an update by `workers` that share the tokens evenly."""
    tokens = sum(work.tokens(g.lengths) for g in groups) / workers
    passes = max(1.0, tokens / costs.micro)
    pairs = sum(work.pairs(g.lengths) for g in groups) / workers
    return max(tokens * costs.learn + pairs * costs.pair, passes * costs.exchange) + costs.update


def synchronous(costs: Costs, work: Work, workers: int, draw: Draw, steps: int, extra: float = 0.0) -> Outcome:
    """All workers generate, then all learn. `extra` more groups are started than a step needs, it goes on when it has
    enough, and the unfinished are gone on with in the next (partial rollouts, arXiv:2509.18521).
    """
    numbers, left = itertools.count(), list[Group]()
    total = generation = busy = 0.0
    stale: list[int] = []
    for version in range(steps):
        engines = [Engine(costs, work.prompt) for _ in range(workers)]
        fresh = round(work.groups * (1 + extra)) - len(left)
        for place, group in enumerate(left + [Group(next(numbers), draw(), version) for _ in range(fresh)]):
            engines[place % workers].add(group)
        events = [(e.next_end(), i) for i, e in enumerate(engines) if e.running]
        heapq.heapify(events)
        finished: list[Group] = []
        end = 0.0
        while len(finished) < work.groups:
            end, i = heapq.heappop(events)
            ended = engines[i].advance()
            if ended is not None:
                finished.append(ended)
            if engines[i].running:
                heapq.heappush(events, (engines[i].next_end(), i))
        for engine in engines:
            busy += end if engine.running else min(engine.now, end)
            engine.pause(end)
        left = [g for e in engines for g in e.stop()]
        stale += [version - g.born for g in finished]
        generation += end
        total += end + learning(costs, work, finished, workers) + costs.sync
    return Outcome(total / steps, work.groups * work.size, sum(stale) / len(stale), 1 - busy / workers / generation)


def asynchronous(
    costs: Costs, work: Work, generating: int, training: int, draw: Draw, steps: int, staleness: int
) -> Outcome:
    """Some workers generate all the time, the others learn from whole groups as they come. No group is started that
    could be trained on more than `staleness` versions later: at most staleness + 1 steps' groups are open.
    """
    numbers = itertools.count()
    engines = [Engine(costs, work.prompt) for _ in range(generating)]
    open_, version, now = 0, 0, 0.0
    ready: deque[Group] = deque()
    stale: list[int] = []
    trained_until, marks = float("inf"), [0.0]
    batch: list[Group] = []
    idle_since = [0.0] * generating
    idle = 0.0

    def load(i: int) -> int:
        return len(engines[i].running) + len(engines[i].waiting)

    def start() -> Iterator[int]:
        """Engines that took a group: those with the fewest rows first, while there may be more."""
        nonlocal open_, idle
        room = (staleness + 1) * work.groups - open_
        most = max(costs.rows, work.size) - work.size
        free = deque(sorted((i for i in range(generating) if load(i) <= most), key=load) if room > 0 else ())
        while free and room > 0:
            i = free.popleft()
            if not engines[i].running:
                idle += max(0.0, now - idle_since[i])
            engines[i].pause(now)
            engines[i].add(Group(next(numbers), draw(), version))
            open_, room = open_ + 1, room - 1
            if load(i) <= most:
                free.append(i)
            yield i

    events: list[tuple[float, int, int]] = []
    current = [0] * generating  # an event of an engine that has changed since is void

    def schedule(i: int) -> None:
        current[i] += 1
        if engines[i].running:
            heapq.heappush(events, (engines[i].next_end(), i, current[i]))

    for i in set(start()):
        schedule(i)
    while version < steps:
        if not batch and len(ready) >= work.groups:
            batch = [ready.popleft() for _ in range(work.groups)]
            stale += [version - g.born for g in batch]
            trained_until = now + learning(costs, work, batch, training)
        ahead = events[0][0] if events else float("inf")
        if trained_until <= ahead:
            now, trained_until = trained_until, float("inf")
            version += 1
            open_ -= len(batch)
            batch = []
            marks.append(now)
            for engine in engines:
                if engine.running:
                    engine.pause(now)
                    engine.now += costs.sync
            changed = set(range(generating)) | set(start())
        else:
            now, i, stamp = heapq.heappop(events)
            if stamp != current[i]:
                continue
            group = engines[i].advance()
            changed = {i}
            if group is not None:
                ready.append(group)
                changed |= set(start())
            if not engines[i].running:
                idle_since[i] = engines[i].now
        for i in changed:
            schedule(i)
    half = steps // 2  # the pipe is full by then
    seconds = (marks[steps] - marks[half]) / (steps - half)
    for i, engine in enumerate(engines):
        idle += max(0.0, now - idle_since[i]) if not engine.running else 0.0
    return Outcome(seconds, work.groups * work.size, sum(stale) / len(stale), idle / generating / now)
