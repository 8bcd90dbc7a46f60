"""Agents that are trained by runs of their own, which meet at a place (decoupled training, arXiv:2511.13288).

One run plays: the one that trains the first policy. At each step it takes the newest weights of the agents that are
trained elsewhere, plays, and puts the rollouts of everybody there as the batch of that step. The others take it, train
on what is theirs, and put their weights there. A step is played once: a run that goes on from a checkpoint takes the
batches that lie there already, the one that plays too.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import safetensors.torch

from coterie.errors import RunError
from coterie.rollout.batch_file import read, written
from coterie.rollout.place import Place
from coterie.rollout.shared_episodes import prompts_for
from coterie.stage import Stage

if TYPE_CHECKING:
    from coterie.rollouts import Rollouts
    from coterie.run import Run

T = TypeVar("T")
SILENT, LONGEST = 10.0, 0.5
"""Seconds of waiting before it is said, and at most between two looks."""
_BATCH = re.compile(r"batch-(\d{8,})-\d+-\d+\.parquet")


class Apart(Stage):
    """A stage whose agents are trained in several runs. `copies` are the runs of those that are played with here and
    trained elsewhere; a run that does not play has none.
    """

    def __init__(self, lead: Run, players: list[Run]) -> None:
        super().__init__(lead, players)
        spec = lead.settings.apart
        here = {agent.name for agent in lead.agents}
        self.copies = [player for player in players if player.name not in here]
        self.plays = bool(self.copies)
        self.place = Place(str(spec.path), spec.patience)
        self.patience, self.staleness = spec.patience, spec.staleness
        warm = lead.settings.warm_start
        self._teaches_all = warm.steps > 0 and warm.stop_at is not None
        self._versions = {copy.name: -1 for copy in self.copies}
        """Step after which the weights of each copy were given."""
        self._oldest = {player.name: 0 for player in players}
        """Step of the oldest checkpoint of the run that trains each."""
        self._offered = self._played_at = -1
        self._waited = self._late = 0.0

    @property
    def taught(self) -> list[Run]:
        """A warm start that stops by success needs the whole world: the run that plays teaches all, and the others
        begin with what it hands out. One that stops by its steps is each run's own.
        """
        if not self._teaches_all:
            return super().taught
        return [p for p in self.players if p.learns or p.name in self._versions] if self.plays else []

    def claim(self) -> None:
        """Before a new run begins. Raises RunError where others have met at the place."""
        names = self.place.names()
        batches = self.plays and any(_BATCH.fullmatch(name) for name in names)
        most = 0 if self._teaches_all and not self.plays else -1  # what is handed out is there before
        given = self.lead.agents if not self.plays else self.copies if self._teaches_all else []
        trained = [agent.name for agent in given if max(_numbers(agent.name, names), default=-1) > most]
        if batches or trained:
            raise RunError(
                f"weights of {' and '.join(trained)} of another run lie there"
                if trained
                else "rollouts of another run lie there",
                where=self.place.shown,
                hint="go on with that run (`coterie resume RUN`), or meet in an empty folder: apart.path=FOLDER",
            )

    def receive(self) -> None:
        """Begin with the weights that the run which plays has taught."""
        for agent in self.lead.agents:
            self._load(agent, 0)

    def gather(self, step: int) -> None:
        """Bring the copies to weights of `staleness` steps before `step` or later: the newest there are."""
        if step == 0 and self._teaches_all:
            return
        for copy in self.copies:
            self._load(copy, max(step - self.staleness, 0))

    def learned(self, step: int) -> None:
        """Let others have the weights after `step` steps, in the place of earlier ones."""
        if self.plays or step <= self._offered:
            return
        for agent in self.lead.agents:
            self._offer(agent, step)
            earlier = [step - 1] if self._offered >= 0 else _numbers(agent.name, self.place.names())
            for number in earlier:
                if number < step:
                    self.place.remove(_weights_of(agent.name, number))
        self._offered = step

    def kept(self, oldest: int) -> None:
        """The oldest checkpoint from which this run may go on is of this step. What no run needs any more goes."""
        self._oldest |= {agent.name: oldest for agent in self.lead.agents}
        if self.plays:
            first = min(self._oldest.values())
            for name in self.place.names():
                found = _BATCH.fullmatch(name)
                if found is not None and int(found[1]) < first:
                    self.place.remove(name)

    def measured(self) -> dict[str, float]:
        out = {"apart/waited": self._waited + self.place.waited, "apart/versions_late": self._late}
        self._waited = self.place.waited = 0.0
        return out

    def _tables(self, step: int, round_: int, count: int) -> dict[str, Rollouts]:
        """The batch of a step from the place, where it lies there. Else it is played, or waited for."""
        name = f"batch-{step:08d}-{round_}-{count}.parquet"
        if not self.plays:
            self._check_not_over(step)
            self.learned(step)
            return self._received(self._until(partial(self.place.get, name), f"no rollouts of step {step} came"))
        indices = self.draw(step, count)  # the curriculum may remember it
        content = self.place.get(name)
        if content is not None:
            return self._received(content)
        if step == 0 and self._teaches_all:
            there = self.place.names()
            for copy in self.copies:
                self._versions[copy.name] = 0
                if not _numbers(copy.name, there):
                    self._offer(copy, 0)
        if step != self._played_at:  # where filters draw again, weights are those of the first draw
            self.gather(step)
            self._played_at = step
        tables = self._play(step, round_, indices)
        own = {agent.name for agent in self.lead.agents}
        given = tables if round_ == 0 else {n: t for n, t in tables.items() if n in own}  # others draw once
        about = {"agreed": self._agreed, "step": step, "versions": self._versions}
        self.place.put(name, written(given, about))
        self._late = float(step - min(self._versions.values()))
        return tables

    def _check_not_over(self, step: int) -> None:
        """Where this process has taken no batch yet: raise RunError if that of the step lies there no more."""
        if self._offered >= 0:
            return
        there = [int(found[1]) for name in self.place.names() if (found := _BATCH.fullmatch(name))]
        if there and step < min(there):
            raise RunError(
                f"the rollouts of step {step} are gone, and those of step {min(there)} are there",
                where=self.place.shown,
                hint="this run cannot go on: begin all of them anew, in another place",
            )

    def _received(self, content: bytes) -> dict[str, Rollouts]:
        agents = {agent.name: agent for agent in self.lead.agents}
        about, tables = read(content, agents)
        self._check_agreed(about["agreed"], "the run that plays")
        versions = [about["versions"][n] for n in (self._versions if self.plays else agents)]
        self._late = float(about["step"] - min(versions))
        for name, table in tables.items():
            agent = agents[name]
            rows = [(agent.task.train[p.index], p.index) for p in table.prompts]
            prompts = prompts_for(agent.policy, name, rows)
            if [p.tokens for p in prompts] != [p.tokens for p in table.prompts]:
                raise RunError(
                    f"prompts of {name} are others here than in the run that plays",
                    where=self.place.shown,
                    hint="all runs need the same task, data and tokenizer",
                )
            table.prompts = prompts
            tables[name] = table.to(agent.policy.device)
        return tables

    def _offer(self, agent: Run, step: int) -> None:
        state = {name: tensor.cpu().contiguous() for name, tensor in agent.policy.state_dict().items()}
        about = {"agreed": self._agreed, "version": agent.policy.version, "oldest": self._oldest[agent.name]}
        self.place.put(_weights_of(agent.name, step), safetensors.torch.save(state, {"coterie": json.dumps(about)}))

    def _load(self, agent: Run, least: int) -> None:
        number, content = self._until(
            partial(self._newest, agent, least), f"no weights of {agent.name} after {least} steps came"
        )
        if content is None:
            return
        about = _said_of(content)
        self._check_agreed(about["agreed"], f"the run that trains {agent.name}" if self.plays else "the run that plays")
        agent.policy.load_state_dict(safetensors.torch.load(content))
        agent.policy.version = about["version"]
        if self.plays:
            self._versions[agent.name], self._oldest[agent.name] = number, about["oldest"]

    def _newest(self, agent: Run, least: int) -> tuple[int, bytes | None] | None:
        """The newest weights there are, if they are new enough; None for their bytes if they are what we have."""
        number = max(_numbers(agent.name, self.place.names()), default=-1)
        if number < least:
            return None
        if number == self._versions.get(agent.name):
            return number, None
        content = self.place.get(_weights_of(agent.name, number))
        return None if content is None else (number, content)  # newer ones have taken their place meanwhile

    def _until(self, look: Callable[[], T | None], missing: str) -> T:
        """What `look` finds, as soon as it does."""
        began, pause, told, answered_after = time.monotonic(), 0.002, False, self.place.waited
        while (found := look()) is None:
            waited = time.monotonic() - began
            if self.stopping():
                raise KeyboardInterrupt
            if waited > self.patience:
                raise RunError(
                    f"{missing} in {waited:.0f} s (apart.patience)",
                    where=self.place.shown,
                    hint="see whether the run that gives them goes on; the last checkpoint of this one is intact: "
                    "`coterie resume RUN`",
                )
            if waited > SILENT and not told:
                self.place.say(f"{missing} yet: waiting for the run that gives them, at {self.place.shown}")
                told = True
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST)
        self._waited += time.monotonic() - began - (self.place.waited - answered_after)
        return found

    @property
    def _agreed(self) -> dict[str, Any]:
        """What must be the same in all runs."""
        s = self.lead.settings
        kept = {"seed": s.seed, "apart.staleness": self.staleness, "warm_start.stop_at": s.warm_start.stop_at}
        drawn = {"draw.prompts": s.draw.prompts, "rollout.group_size": s.rollout.group_size}
        return {**kept, **drawn, "rollout.max_tokens": s.rollout.max_tokens, "task": self.lead.task.name}

    def _check_agreed(self, theirs: Mapping[str, Any], whose: str) -> None:
        for key, value in self._agreed.items():
            if theirs.get(key) != value:
                raise RunError(
                    f"{key} is {value} here and {theirs.get(key)} in {whose}",
                    where=self.place.shown,
                    hint="start all runs with the same recipe; only apart.train differs",
                )


def _weights_of(agent: str, number: int) -> str:
    return f"weights-{quote(agent, safe='')}-{number:08d}.safetensors"


def _numbers(agent: str, names: list[str]) -> list[int]:
    """After how many steps there are weights of an agent."""
    pattern = re.compile(rf"weights-{re.escape(quote(agent, safe=''))}-(\d{{8,}})\.safetensors")
    return [int(found[1]) for name in names if (found := pattern.fullmatch(name))]


def _said_of(content: bytes) -> dict[str, Any]:
    """What a file of weights says of itself: the header of safetensors is JSON behind eight bytes of its length."""
    try:
        length = int.from_bytes(content[:8], "little")
        return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["coterie"])
    except (ValueError, KeyError) as error:
        raise RunError("what lies there are no weights of a run", hint="was it put there by hand?") from error
