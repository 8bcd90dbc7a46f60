"""The rollouts of a run, made and graded by a pool of workers: in step with the trainer, or ahead of it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any

import torch

from coterie.clock import Clock
from coterie.collect import draw
from coterie.metrics import Collector, record
from coterie.rollouts import Rollouts
from coterie.run import Run
from coterie.scale.maker import Made, jobs_of, join
from coterie.scale.pool import Pool
from coterie.scale.tickets import Ledger, Ticket
from coterie.scale.weights import Packer


class Elsewhere:
    """For a process of the team that only trains: the first one asks for rollouts."""

    def collect(self, run: Run, step: int, round_: int, count: int, clock: Clock) -> None:
        return None

    def state_dict(self) -> list[list[Any]]:
        return []


class InStep:
    """Groups of the current weights, asked for and waited for: what one process would make."""

    def __init__(self, run: Run, pool: Pool) -> None:
        self.pool, self.jobs, self.packer = pool, 0, Packer()
        self.sent: int | None = None

    def collect(self, run: Run, step: int, round_: int, count: int, clock: Clock) -> Rollouts:
        """`count` groups, in the order in which they were drawn."""
        self._publish(run, step, clock)
        indices = draw(run, step, count)
        tickets = [Ticket(run.drawn + i, index, (step, round_, i)) for i, index in enumerate(indices)]
        each = math.ceil(count / self.pool.scale.rollout_workers)
        jobs = jobs_of(tickets, each, step, round_, self.jobs)
        self.jobs += len(jobs)
        with clock.phase("generate"):
            self.pool.submit(jobs)
            parts = sorted((self.pool.next() for _ in jobs), key=lambda made: made.job.number)
        return self._joined(run, parts)

    def _publish(self, run: Run, step: int, clock: Clock) -> None:
        """Send the weights, if they have changed."""
        if self.sent == run.policy.version:
            return
        with clock.phase("sync"):
            self.pool.publish(step, run.policy.version, self.packer, run.policy.state_dict())
        self.sent = run.policy.version

    def _joined(self, run: Run, parts: list[Made]) -> Rollouts:
        took = sum(made.seconds for made in parts) / self.pool.scale.rollout_workers
        run.metrics["time/workers"] = run.metrics.get("time/workers", 0.0) + took
        with self.pool.lock:
            said, self.pool.replaced = self.pool.replaced, []
            run.notes += self.pool.said
            fallbacks, self.pool.said, self.pool.fallbacks = self.pool.fallbacks, [], 0
        if fallbacks:
            run.metrics["workers/sync_fallbacks"] = run.metrics.get("workers/sync_fallbacks", 0.0) + fallbacks
        if said:
            run.notes += said
            run.metrics["workers/replaced"] = run.metrics.get("workers/replaced", 0.0) + len(said)
        return join(parts, run)

    def state_dict(self) -> list[list[Any]]:
        return []


class Ahead(InStep):
    """Workers go on while the trainer learns. A batch takes the groups that are ready first; none is trained on more
    than `scale.max_staleness` steps after the weights that made it.
    """

    def __init__(self, run: Run, pool: Pool) -> None:
        super().__init__(run, pool)
        self.ledger = Ledger(run.settings.draw.prompts, run.settings.scale.max_staleness)
        self.ready: deque[tuple[Ticket, Made]] = deque()
        self.old = [Ticket(number, prompt, tuple(key)) for number, prompt, key in run.asked]

    def collect(self, run: Run, step: int, round_: int, count: int, clock: Clock) -> Rollouts:
        self._publish(run, step, clock)
        taken: list[tuple[Ticket, Made]] = []
        with clock.phase("generate"):
            while len(taken) < count:
                self._ask(run, step, count - len(taken))
                places = count - len(taken)
                found = next((r for r in self.ready if self.ledger.may_take(r[0].number, step, places)), None)
                if found is None:
                    made = self.pool.next()
                    self.ready.extend((t, m) for t, m in zip(made.job.tickets, _groups(made), strict=True))
                else:
                    self.ready.remove(found)
                    self.ledger.take(found[0].number)
                    taken.append(found)
            self._ask(run, step, 0)
        taken.sort(key=lambda pair: pair[0].number)
        late = torch.tensor([float(step - made.weights) for _, made in taken])
        record("staleness/mean", float(late.mean()))
        run.metrics["staleness/max"] = max(run.metrics.get("staleness/max", 0.0), float(late.max()))
        return self._joined(run, [made for _, made in taken])

    def _ask(self, run: Run, step: int, places: int) -> None:
        """Give out as many tickets as may be, those of a run that was stopped first."""
        room = self.ledger.room(places)
        if not room:
            return
        tickets, self.old = self.old[:room], self.old[room:]
        fresh = room - len(tickets)
        if fresh:
            indices = draw(run, step, fresh)
            tickets += [Ticket(run.drawn + i, index, (run.drawn + i,)) for i, index in enumerate(indices)]
            run.drawn += fresh
        for ticket in tickets:
            self.ledger.give(ticket, step)
        # a job takes as long as its longest rollout: cut a batch no finer than there are workers
        each = math.ceil(self.ledger.prompts / self.pool.scale.rollout_workers)
        jobs = jobs_of(tickets, each, step, 0, self.jobs, tickets[0].number)
        self.jobs += len(jobs)
        self.pool.submit(jobs)

    def state_dict(self) -> list[list[Any]]:
        return [*self.ledger.state_dict(), *([t.number, t.prompt, list(t.key)] for t in self.old)]


def _groups(made: Made) -> list[Made]:
    """A job's groups one by one, each with its ticket; what the job counted goes with the first."""
    out = []
    for place, ticket in enumerate(made.job.tickets):
        rows = made.rollouts.rows(made.rollouts["groups"] == place)
        number = torch.full_like(rows["groups"], ticket.number)
        rows = rows.with_columns(groups=torch.zeros_like(rows["groups"]), ticket=number)
        rows.prompts = [made.rollouts.prompts[place]]
        if place == 0:
            out.append(replace(made, rollouts=rows))
        else:
            out.append(Made(made.job, made.weights, rows, {}, [], Collector(), 0.0))
    return out
