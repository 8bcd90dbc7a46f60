"""Tasks of `verifiers` (0.4 and later) as a world of one turn: their prompt, and the rewards they define.

The package is not among Coterie's extras (its own requirements are many): install it beside. What is read of a task are
`data` (prompt, system_prompt), `key`, `hash` and `score(trace)`. Tasks that need a container, tool servers or a harness
of their own drive the model themselves, through an endpoint; they are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coterie.environments.base import Step
from coterie.errors import RecipeError


def load(make: Callable[[], Any], limit: int | None = None) -> list[Any]:
    """The tasks of a taskset. Raises RecipeError for those that cannot be played in a world."""
    taskset = make()
    if getattr(taskset, "bounded", True) is False and limit is None:
        raise RecipeError("this taskset has no end", hint="task.limit=1000")
    taskset = taskset if limit is None else taskset.take(limit) if hasattr(taskset, "take") else list(taskset)[:limit]
    tasks = list(taskset)
    for task in tasks:
        needs = "a container" if getattr(task, "NEEDS_CONTAINER", False) else ""
        if not needs and hasattr(task, "toolsets") and task.toolsets(task.config):
            needs = "tool servers"
        if not needs and task.data.prompt is None:
            needs = "a user who speaks first"
        if needs:
            raise RecipeError(
                f"{type(task).__name__} needs {needs}, which a world of one turn does not have",
                hint="a taskset whose tasks are a prompt and rewards",
            )
    return tasks


def messages(task: Any) -> list[dict[str, str]]:
    """A task's prompt as a conversation."""
    prompt = task.data.prompt
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_plain(m) for m in prompt]
    system = task.data.system_prompt
    return said if system is None else [{"role": "system", "content": system}, *said]


def _plain(message: Any) -> dict[str, str]:
    content = message.content
    if not isinstance(content, str):
        parts = [getattr(part, "text", None) for part in content or []]
        if None in parts:
            raise RecipeError("a prompt has parts that are no text", hint="a taskset of text prompts")
        content = "\n".join(str(p) for p in parts)
    return {"role": message.role, "content": content}


class VerifiersWorld:
    """Rows have `number`, the place of a task in `tasks`. The first action is the answer and ends the episode with the
    weighted sum of the task's rewards; success is a sum of `success` or more. `info` has the rewards and metrics by
    name."""

    def __init__(self, tasks: Sequence[Any], *, success: float = 1.0) -> None:
        self.tasks, self.success = tasks, success

    def reset(self, row: Mapping[str, Any]) -> None:
        self.task = self.tasks[row["number"]]

    def step(self, action: str) -> Step:
        trace = _trace(self.task, action)
        asyncio.run(self.task.score(trace))
        rewards = {name: None if r is None else r.value for name, r in trace.rewards.items()}
        missing = [name for name, value in rewards.items() if value is None]
        if missing or not rewards:
            raise RuntimeError(
                f"no reward of {type(self.task).__name__} was given: {', '.join(missing) or 'it has none'}"
            )
        total = float(trace.reward)
        info = {"success": total >= self.success, **rewards, **trace.metrics}
        return Step({"role": "user", "content": ""}, total, True, info)


def _trace(task: Any, answer: str) -> Any:
    """What happened, as the package's graders read it: the prompt and one answer."""
    try:
        import verifiers.v1 as vf
        from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage
    except ImportError as error:
        raise RecipeError("tasks of verifiers need the package itself", hint="pip install 'verifiers>=0.4'") from error
    kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    said = [kinds[m["role"]](content=m["content"]) for m in messages(task)]
    nodes = [vf.MessageNode(parent=k - 1 if k else None, message=m) for k, m in enumerate(said)]
    nodes.append(
        vf.MessageNode(parent=len(nodes) - 1, message=AssistantMessage(content=answer), sampled=True, token_ids=[])
    )
    agent = vf.AgentInfo(config=vf.AgentConfig(), name="policy", trainable=True)
    told = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    return vf.Trace(task=told, agent=agent, nodes=nodes, is_completed=True, ok=True)
