"""Where several policies meet: the episodes they play together are played once, and each is handed its own table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.rollout.episodes import report
from coterie.rollout.shared_episodes import play_together, prompts_for
from coterie.sampling import of_step
from coterie.streams import stream
from coterie.wiring import wanted

if TYPE_CHECKING:
    from coterie.rollouts import Rollouts
    from coterie.run import Run


class Stage:
    """Prompts are drawn by the curriculum of the run that leads; every other stage of the loop is each agent's own."""

    def __init__(self, lead: Run) -> None:
        self.lead = lead
        self._played: dict[tuple[int, int, int], dict[str, Rollouts]] = {}

    def rollouts(self, agent: Run, step: int, round_: int, count: int) -> Rollouts | None:
        """The table of an agent, of `count` groups of episodes; None where it did not act in any.

        The first that asks has them played, with every policy as it is; all collect before any of them is updated.
        """
        key = (step, round_, count)
        if key not in self._played:
            self._played = {k: tables for k, tables in self._played.items() if k[0] == step}
            self._played[key] = self._play(*key)
        table = self._played[key].get(agent.name)
        if table is not None:
            assert agent.task.world is not None
            report(table.episodes, agent.task.world)
        return table

    def _play(self, step: int, round_: int, count: int) -> dict[str, Rollouts]:
        lead, agents = self.lead, self.lead.agents
        s, task = lead.settings, lead.task
        assert task.world is not None
        indices = lead.curriculum({"size": len(task.train), "count": count, "seed": s.seed}, step)
        rows = [(task.train[i], i) for i in indices]
        seeds = [
            [stream(s.seed, "rollout", step, round_, place, k) for k in range(s.rollout.group_size)]
            for place in range(len(indices))
        ]
        return play_together(
            {a.name: a.policy for a in agents},
            {a.name: prompts_for(a.policy, a.name, rows) for a in agents},
            seeds,
            of_step(lead.recipe, task, step),
            task.world,
            entropy=any("entropy_old" in wanted(a.recipe, "roll out") for a in agents),
        )
