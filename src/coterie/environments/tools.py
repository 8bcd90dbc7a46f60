"""Tools as plain Python functions: their schema from type hints and docstring, and arguments that are checked."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from coterie.errors import RecipeError

ROW = "row"
"""A parameter of this name is no argument of the model's: it is given the task's row."""


class ToolError(Exception):
    """What a tool raises where the model asked for something impossible: it is told so and the episode goes on."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    fn: Callable[..., Any]
    name: str
    schema: Mapping[str, Any]
    """As `apply_chat_template(tools=…)` takes it."""
    parameters: Mapping[str, TypeAdapter[Any]]
    required: frozenset[str]
    wants_row: bool

    @staticmethod
    def of(fn: Callable[..., Any]) -> Tool:
        """A tool of a function whose parameters have type hints; its docstring tells the model what it does.

        A parameter's own description stands in its hint: Annotated[int, Field(description="…")].
        """
        name = fn.__name__
        try:
            hints = typing.get_type_hints(fn, include_extras=True)
        except NameError as error:
            raise RecipeError(f"the hints of tool {name} cannot be read: {error}") from error
        parameters, required = {}, []
        for p in inspect.signature(fn).parameters.values():
            if p.name == ROW:
                continue
            if p.name not in hints or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
                raise RecipeError(
                    f"parameter '{p.name}' of tool {name} cannot be described to a model",
                    hint="tools have named parameters with type hints, no *args",
                )
            try:
                parameters[p.name] = TypeAdapter(hints[p.name])
            except PydanticSchemaGenerationError as error:
                raise RecipeError(
                    f"parameter '{p.name}' of tool {name} has a type that no JSON can give: {hints[p.name]}",
                    hint="str, int, float, bool, list, dict, Literal, or a pydantic model",
                ) from error
            if p.default is p.empty:
                required.append(p.name)
        described = {
            "name": name,
            "description": inspect.getdoc(fn) or name,
            "parameters": {
                "type": "object",
                "properties": {n: a.json_schema() for n, a in parameters.items()},
                "required": required,
            },
        }
        wants_row = ROW in inspect.signature(fn).parameters
        return Tool(fn, name, {"type": "function", "function": described}, parameters, frozenset(required), wants_row)

    @property
    def line(self) -> str:
        """For prompts without a chat template: name, parameters and the docstring's first line."""
        shown = []
        for name, schema in self.schema["function"]["parameters"]["properties"].items():
            kind = schema.get("type", "any")
            shown.append(f"{name}: {kind}" + ("" if name in self.required else "?"))
        return f"{self.name}({', '.join(shown)}): {self.schema['function']['description'].splitlines()[0]}"

    def __call__(self, arguments: Mapping[str, Any], row: Mapping[str, Any]) -> str:
        """Check the arguments and call. Text is given as it is, everything else as JSON. Raises ToolError."""
        checked = self.checked(arguments)
        result = self.fn(**checked, row=row) if self.wants_row else self.fn(**checked)
        return result if isinstance(result, str) else json.dumps(result, default=str)

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function's types. Raises ToolError that says what is wrong with them."""
        unknown = [n for n in arguments if n not in self.parameters]
        missing = [n for n in self.parameters if n in self.required and n not in arguments]
        if unknown or missing:
            said = [f"has no argument {n!r}" for n in unknown[:3]] + [f"needs the argument {n!r}" for n in missing]
            raise ToolError(f"{self.name} {' and '.join(said)}; it is {self.line.partition(': ' + self._about)[0]}")
        return {name: self._read(name, value) for name, value in arguments.items()}

    @property
    def _about(self) -> str:
        return str(self.schema["function"]["description"].splitlines()[0])

    def _read(self, name: str, value: Any) -> Any:
        adapter = self.parameters[name]
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            if isinstance(value, str):  # in XML lists and objects are text
                try:
                    return adapter.validate_json(value)
                except ValidationError:
                    pass
            said = error.errors()[0]["msg"].lower()
            raise ToolError(f"argument {name!r} of {self.name}: {said}, got {str(value)[:60]!r}") from None


class Conversation(list[dict[str, Any]]):
    """Messages, and the tools that the chat template shows beside them: a prompt of a task with tools."""

    def __init__(self, messages: Sequence[Mapping[str, Any]] = (), tools: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(dict(m) for m in messages)
        self.tools = list(tools)


def ask(question: str, tools: Sequence[Tool], *, chat: bool, how: str = "") -> str | Conversation:
    """A prompt: the user's message of a conversation with tools, else text that lists the tools in short.

    how: what else is to be said on how to answer.
    """
    told = f"{question}\n{how}" if how else question
    if chat:
        return Conversation([{"role": "user", "content": told}], [t.schema for t in tools])
    return "\n".join([*(t.line for t in tools), told]) + "\n"
