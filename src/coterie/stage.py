"""Where several policies meet: the episodes they play together are played once, and each is handed its own table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from coterie.rollout.episodes import report
from coterie.rollout.shared_episodes import play_together, prompts_for
from coterie.sampling import of_step
from coterie.streams import streams
from coterie.wiring import wanted

if TYPE_CHECKING:
    from coterie.rollouts import Rollouts
    from coterie.run import Run


class Stage:
    """Prompts are drawn by the curriculum of the run that leads; every other stage of the loop is each agent's own.
    `players` are all who act, in the order of the recipe.
    """

    plays = True
    """Whether episodes are played here; `coterie.apart` has stages that receive them."""

    def __init__(self, lead: Run, players: list[Run]) -> None:
        self.lead, self.players = lead, players
        self.stopping: Callable[[], bool] = lambda: False
        """Asked where other runs are waited for, which is then given up."""
        self._played: dict[tuple[int, int, int], dict[str, Rollouts]] = {}

    @property
    def taught(self) -> list[Run]:
        """Who is warm-started here."""
        return [player for player in self.players if player.learns]

    def claim(self) -> None:
        """A new run is about to begin."""

    def receive(self) -> None:
        """Take the weights to begin with, where nobody is taught here."""

    def gather(self, step: int) -> None:
        """All players are to be as they are after `step` steps."""

    def learned(self, step: int) -> None:
        """All who are trained here have learned from `step` steps."""

    def kept(self, oldest: int) -> None:
        """The oldest checkpoint there is was written after `oldest` steps."""

    def measured(self) -> dict[str, float]:
        """Metrics of the step."""
        return {}

    def rollouts(self, agent: Run, step: int, round_: int, count: int) -> Rollouts | None:
        """The table of an agent, of `count` groups of episodes; None where it did not act in any.

        The first that asks has them played, with every policy as it is; all collect before any of them is updated.
        """
        key = (step, round_, count)
        if key not in self._played:
            self._played = {k: tables for k, tables in self._played.items() if k[0] == step}
            self._played[key] = self._tables(*key)
        table = self._played[key].get(agent.name)
        if table is not None:
            assert agent.task.world is not None
            report(table.episodes, agent.task.world)
        return table

    def draw(self, step: int, count: int) -> list[int]:
        """The next prompts, for `count` groups."""
        lead = self.lead
        return lead.curriculum({"size": len(lead.task.train), "count": count, "seed": lead.settings.seed}, step)

    def _tables(self, step: int, round_: int, count: int) -> dict[str, Rollouts]:
        return self._play(step, round_, self.draw(step, count))

    def _play(self, step: int, round_: int, indices: list[int]) -> dict[str, Rollouts]:
        lead, players = self.lead, self.players
        s, task = lead.settings, lead.task
        assert task.world is not None
        rows = [(task.train[i], i) for i in indices]
        each = s.rollout.group_size
        seeds = [streams(each, s.seed, "rollout", step, round_, place) for place in range(len(indices))]
        return play_together(
            {p.name: p.policy for p in players},
            {p.name: prompts_for(p.policy, p.name, rows) for p in players},
            seeds,
            of_step(lead.recipe, task, step),
            task.world,
            entropy=any("entropy_old" in wanted(p.recipe, "roll out") for p in players),
        )
