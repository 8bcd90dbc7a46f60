"""A world that answers actions: what a policy of many turns acts in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from coterie.errors import RecipeError

if TYPE_CHECKING:
    from coterie.rollout.contexts import Context


RAN = "ran"
"""Name in a step's info: whether the action's tool calls ran."""


@dataclass(frozen=True)
class Step:
    """What an action leads to. `observation` is text the policy reads next, or a message ({"role": "tool", …}) where
    prompts are conversations. `info` goes to reward functions with the episode; its "success" is the verdict and its
    "state" the state's key, where that is more than the observation. Its "ran" is whether the tool calls of the action
    ran without an error, left out where it calls none.
    """

    observation: str | Mapping[str, Any]
    reward: float = 0.0
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


Answers = Step | Sequence[Step]
"""What one of several agents gets."""


class Environment(Protocol):
    """One episode at a time. The policy has read the row's prompt, which says where things stand at the beginning.

    Either method may be a coroutine. An exception ends the episode, which then has no reward and leaves its group; an
    action that cannot be understood is no exception: say so in the observation.
    """

    def reset(self, row: Mapping[str, Any]) -> Any:
        """Begin the episode of a row of the task. What it returns, if anything, is the key of the first state."""

    def step(self, action: str) -> Step | Awaitable[Step]:
        """Answer an action, as the policy wrote it."""


class SharedEnvironment(Protocol):
    """One episode of several agents (`World.agents`), each of which has a prompt and a line of its own.

    Prompts are in the row: "prompts" by agent, "prompt" for those that are not there. Both methods may be coroutines.
    """

    def reset(self, row: Mapping[str, Any]) -> Mapping[str, str] | None:
        """Who acts first, and what each reads behind its prompt ("" for nothing). None: everybody, and nothing."""

    def step(self, actions: Mapping[str, str]) -> Mapping[str, Answers] | Awaitable[Mapping[str, Answers]]:
        """Answer all who acted, at once, by agent. Whoever gets a step that is not done acts next.

        An agent that is not named waits. One that has no line under way, because it has not acted yet or its line is
        done, begins a new one with the observation: a call. A step that is done, for an agent without a line under way,
        comes late: its reward is added to the last turn of each of the agent's lines, and its info to what is known of
        them. Several steps for one agent are taken one after the other: the last of a line, then the next call. The
        episode ends where nobody acts next.
        """


def row_of(row: Mapping[str, Any], agent: str) -> dict[str, Any]:
    """A row of the task as an agent has it: with its own prompt, and "agent", its name."""
    return {**row, "prompt": row.get("prompts", {}).get(agent, row["prompt"]), "agent": agent}


@dataclass(frozen=True)
class World:
    """How a task's episodes are played. Rollouts of a task with a world have many turns.

    make: a new environment. turns: the most actions of an episode. turn_tokens: the most tokens of an action; the whole
    episode, observations included, has rollout.max_tokens. timeout: seconds a call of the environment may take; with
    one, each environment lives in a process of its own that can be killed, and no more than `processes` episodes (but
    whole groups) are played at once. most_failed: the share of the episodes played at once that may fail before the run
    ends with an error. context: what is still read of an episode that grows, all of it for None (see
    `coterie.rollout.contexts`); with one, rollout.max_tokens is for what is read after the prompt.
    agents: who acts, where there are several: `make` then gives a SharedEnvironment, and turns are rounds, in each of
    which an agent acts once at the most, and there is no context.
    """

    make: Callable[[], Any]
    turns: int = 8
    turn_tokens: int | None = None
    timeout: float | None = None
    most_failed: float = 0.5
    context: Context | None = None
    agents: tuple[str, ...] = ()
    processes: int = 64
    idle: list[Any] = field(default_factory=list, init=False, compare=False, repr=False)
    """Processes of earlier episodes, for the next ones."""

    def __post_init__(self) -> None:
        if self.agents and self.context is not None:
            raise RecipeError("a world of several agents has no context", hint="context=None")
        for name in ("turns", "turn_tokens", "timeout", "processes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RecipeError(f"{name} of an environment must be above 0, got {value}", hint=f"{name}=8")

    @property
    def described(self) -> str:
        """For people: what is played, and how."""
        name = getattr(self.make, "__name__", None) or type(self.make).__name__
        tokens = "any number of" if self.turn_tokens is None else f"at most {self.turn_tokens}"
        where = "in this process" if self.timeout is None else f"in processes of their own, {self.timeout:g} s a call"
        name += f" of {' and '.join(self.agents)}" if self.agents else ""
        read = "" if self.context is None else f", reading {self.context}"
        return f"{name}: at most {self.turns} turns of {tokens} tokens, {where}{read}"


@dataclass
class Episode:
    """What became of one rollout: given to reward functions as the column `episode`."""

    rewards: list[float] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    """Key of the state in which each action was taken."""
    infos: list[Mapping[str, Any]] = field(default_factory=list)
    done: bool = False
    failed: str | None = None
    """Why the environment broke down, if it did."""

    @property
    def total(self) -> float:
        return float(sum(self.rewards))

    @property
    def turns(self) -> int:
        return len(self.actions)

    @property
    def success(self) -> bool:
        """What the environment last said of "success", else whether the rewards add up to more than 0."""
        said = [info["success"] for info in self.infos if "success" in info]
        return bool(said[-1]) if said else self.total > 0

    def hear(self, step: Step) -> None:
        """Take in what the world answered the last action."""
        self.rewards.append(float(step.reward))
        self.infos.append(dict(step.info))
        self.observations.append(step.observation)
        self.done = step.done

    def hear_late(self, step: Step) -> None:
        """Take in what became known when the last action had been answered: it counts for that action."""
        if self.rewards:
            self.rewards[-1] += float(step.reward)
            self.infos[-1] = {**self.infos[-1], **step.info}


def episode_return(completions: list[Any], episode: list[Episode], **_: Any) -> list[float | None]:
    """The reward of a task with a world: the sum of the steps' rewards, nothing for episodes that failed."""
    return [None if e.failed is not None else e.total for e in episode]
