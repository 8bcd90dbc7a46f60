"""Calls of tools as models write them, read and written: Hermes and Qwen, Llama 3, and plain XML."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import escape, unescape

Format = Literal["hermes", "llama", "xml"]
PYTHON_TAG = "<|python_tag|>"
LONGEST = 20_000
"""Characters of a call that is written as code."""
_THOUGHT = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_XML = re.compile(r"<([A-Za-z_][\w.-]*)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A tool's name and the arguments it is given."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """An action, read: the calls in it, what is wrong with those that cannot be understood, and the text beside them
    without thoughts (<think>…</think>)."""

    calls: tuple[Call, ...]
    problems: tuple[str, ...]
    text: str

    @property
    def answer(self) -> str:
        """The final answer, where there is no call: what stands last in <answer>…</answer>, else the whole text."""
        found = _ANSWER.findall(self.text)
        return str(found[-1] if found else self.text).strip()


def parse(action: str, format: Format, names: Collection[str]) -> Said:
    """Read an action. `names` are the tools there are.

    A last call may lack its closing tag, because a stop string that ends a call is cut off. Nothing is raised for
    whatever a model may write.
    """
    return _READERS[format](_THOUGHT.sub("", action).strip(), names)


def write(call: Call, format: Format) -> str:
    """A call as a model writes it: what `parse` reads as that call. In XML all values become text."""
    if format == "xml":
        inside = "".join(f"<{name}>{escape(_text(value))}</{name}>" for name, value in call.arguments.items())
        return f"<{call.name}>{inside}</{call.name}>"
    if format == "llama":
        return json.dumps({"name": call.name, "parameters": dict(call.arguments)})
    return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': dict(call.arguments)})}\n</tool_call>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Problem(Exception):
    """What is wrong with a call."""


def _hermes(text: str, names: Collection[str]) -> Said:
    calls, problems = _gathered(_HERMES.findall(text), lambda inside: _call(_only(inside), "arguments", names))
    rest = _HERMES.sub("", text)
    if "</tool_call>" in rest:
        problems += ("a </tool_call> has no <tool_call> before it",)
    return Said(calls, problems, rest.strip())


def _llama(text: str, names: Collection[str]) -> Said:
    before, tag, after = text.partition(PYTHON_TAG)
    body = (after if tag else before).strip()
    if not tag and not body.startswith("{"):
        return Said((), (), text)
    calls: list[Call] = []
    problems: tuple[str, ...] = ()
    try:
        if built_in := re.match(r"([\w.]+)\.call\(", body):
            calls.append(_built_in(body, built_in.group(1), names))
            body = ""
        while body:
            value, end = _first(body)
            calls.append(_call(value, "parameters", names))
            body = body[end:].lstrip("; \n\t")
    except _Problem as problem:
        problems = (str(problem),)
    return Said(tuple(calls), problems, before.strip() if tag else "")


def _built_in(body: str, name: str, names: Collection[str]) -> Call:
    """name.call(key="value", …), as the tools that Llama knows by heart are called."""
    try:
        if len(body) > LONGEST:
            raise ValueError
        tree = ast.parse(body, mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(k.arg is None for k in tree.keywords):
            raise ValueError
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise _Problem("such a call is written tool.call(name=value), with plain values") from None
    return Call(_known(name, names), arguments)


def _xml(text: str, names: Collection[str]) -> Said:
    def read(found: tuple[str, str]) -> Call:
        name, inside = _known(found[0], names), found[1]
        arguments = _XML.findall(inside)
        if stray := _XML.sub("", inside).strip():
            raise _Problem(f"<{name}> holds text outside of its arguments: {stray[:40]!r}")
        if len({argument for argument, _ in arguments}) < len(arguments):
            raise _Problem(f"<{name}> gives an argument twice")
        return Call(name, {argument: unescape(value.strip("\n")) for argument, value in arguments})

    beside = _ANSWER.sub("", text)
    calls, problems = _gathered(_XML.findall(beside), read)
    return Said(calls, problems, _XML.sub("", beside).strip() if calls or problems else text)


_READERS: dict[str, Callable[[str, Collection[str]], Said]] = {"hermes": _hermes, "llama": _llama, "xml": _xml}


def _gathered(found: Sequence[Any], read: Callable[[Any], Call]) -> tuple[tuple[Call, ...], tuple[str, ...]]:
    """Those that can be read, and what is wrong with the others."""
    calls, problems = [], []
    for one in found:
        try:
            calls.append(read(one))
        except _Problem as problem:
            problems.append(str(problem))
    return tuple(calls), tuple(problems)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _first(text: str) -> tuple[Any, int]:
    """The JSON value that begins a text, and where it ends."""
    try:
        return _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise _Problem(f"the call is not valid JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise _Problem(f"the call is not valid JSON: {str(error)[:80]}") from None


def _only(text: str) -> Any:
    """The JSON value that is all of a text."""
    text = text.strip()
    value, end = _first(text)
    if text[end:].strip():
        raise _Problem("the call is not valid JSON: text follows the object")
    return value


def _call(value: Any, key: str, names: Collection[str]) -> Call:
    """The call in a JSON object. "arguments" and "parameters" mean the same in both formats."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise _Problem(f'a call is an object {{"name": …, "{key}": {{…}}}}')
    name = _known(value["name"], names)
    arguments = value.get(key, value.get("parameters" if key == "arguments" else "arguments", {}))
    if isinstance(arguments, str):  # some write them as JSON inside a text
        arguments = _only(arguments)
    if not isinstance(arguments, dict):
        raise _Problem(f'"{key}" of {name} is no object')
    return Call(name, arguments)


def _known(name: str, names: Collection[str]) -> str:
    if name not in names:
        raise _Problem(f"there is no tool {name[:40]!r}; there are {', '.join(sorted(names))}")
    return name
