"""A world of tools: a list of Python functions and a judge of the final answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coterie.environments.base import RAN, Step
from coterie.environments.tool_calls import Call, Format, parse
from coterie.environments.tools import Tool, ToolError

Judge = Callable[[str, Mapping[str, Any]], float]
"""How good a final answer to a row is, from 0 to 1."""


class ToolWorld:
    """Calls in an action are answered with what the tools gave; an action without calls is the final answer.

    tools: functions (see `Tool.of`). judge(answer, row): the reward of the final answer, from 0 to 1; 1 is success.
    What cannot be understood, a tool that is not there, arguments that do not fit and a tool's ToolError are answered
    with a text that says so. Any other exception of a tool breaks the episode down. longest: characters of a result
    that are shown. `info` has `calls` (made so far that a tool answered), `valid` (whether this action was understood)
    and at the end `answer`; before it `ran`, whether a tool answered every call of this action.

    In a conversation an answer is a message of the role "tool", several results in one; else text.
    """

    def __init__(
        self, tools: Sequence[Callable[..., Any]], judge: Judge, *, format: Format = "hermes", longest: int = 2000
    ) -> None:
        self.tools = {tool.name: tool for tool in map(Tool.of, tools)}
        self.judge, self.format, self.longest = judge, format, longest

    def reset(self, row: Mapping[str, Any]) -> None:
        self.row, self.answered = row, 0
        self.trace: list[tuple[Call, str | None]] = []
        """Calls and their results, None for those that failed."""

    def step(self, action: str) -> Step:
        said = parse(action, self.format, self.tools)
        if not said.calls and not said.problems:
            score = float(self.judge(said.answer, self.row))
            return Step(self._told([]), score, True, {**self._info(True), "success": score >= 1, "answer": said.answer})
        results = [f"error: {problem}" for problem in said.problems]
        before = self.answered
        for call in said.calls:
            try:
                result = self.tools[call.name](call.arguments, self.row)
            except ToolError as error:
                results.append(self._cut(f"error: {error}", least=200))
                self.trace.append((call, None))
            else:
                results.append(self._cut(result))
                self.answered += 1
                self.trace.append((call, result))
        ran = self.answered - before == len(results)
        return Step(self._told(results), info={**self._info(not said.problems), "success": False, RAN: ran})

    def _info(self, valid: bool) -> dict[str, Any]:
        return {"calls": self.answered, "valid": valid}

    def _cut(self, result: str, least: int = 0) -> str:
        longest = max(self.longest, least)
        return result if len(result) <= longest else f"{result[:longest]}… ({len(result) - longest} characters more)"

    def _told(self, results: Sequence[str]) -> str | dict[str, Any]:
        text = "\n".join(results)
        if isinstance(self.row["prompt"], str):
            return f"\n<tool_response>\n{text}\n</tool_response>\n" if results else "\n"
        return {"role": "tool", "content": text}
