"""Who is to be rolled out, by ticket: one a group, each asked for once and trained on once, and how late at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ticket:
    """A group that is to be rolled out. `key` begins its random streams."""

    number: int
    prompt: int
    """Index in the task's training set."""
    key: tuple[int, ...]


class Ledger:
    """Tickets that were given out and not trained on yet.

    A batch takes `prompts` of them or more. A ticket given out in step s, under the weights of then, is trained on in
    step s + staleness at the latest. So there are never more outside than the batches until then can take, and a batch
    takes the groups that are ready first, but only while all others still come in time.
    """

    def __init__(self, prompts: int, staleness: int) -> None:
        self.prompts, self.staleness = prompts, staleness
        self.outside: dict[int, tuple[Ticket, int]] = {}
        """By number, the ticket and the last step that may train on it."""

    def room(self, places: int) -> int:
        """How many tickets may be given out while `places` of the current batch are free."""
        return max(places + self.staleness * self.prompts - len(self.outside), 0)

    def give(self, ticket: Ticket, step: int) -> None:
        self.outside[ticket.number] = (ticket, step + self.staleness)

    def may_take(self, number: int, step: int, places: int) -> bool:
        """Whether the batch of `step`, which has `places` left, may take this one and all others still come in time."""
        if number not in self.outside or places < 1:
            return False
        dues = [due for other, (_, due) in self.outside.items() if other != number]
        return all(
            sum(due <= step + ahead for due in dues) <= places - 1 + ahead * self.prompts
            for ahead in range(self.staleness + 1)
        )

    def take(self, number: int) -> Ticket:
        return self.outside.pop(number)[0]

    def state_dict(self) -> list[list[Any]]:
        return [[t.number, t.prompt, list(t.key)] for t, _ in self.outside.values()]
