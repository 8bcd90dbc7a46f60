"""Inside another sandbox: tests, which call a solution that is somewhere else as if its functions were here."""

from __future__ import annotations

import ast
import builtins

import lines  # type: ignore[import-not-found]
import values  # type: ignore[import-not-found]  # both stand beside this file in the sandbox

TYPE_CHECKING = False  # typing itself takes longer to import than most programs run
if TYPE_CHECKING:
    from typing import Any, TextIO


class SolutionError(Exception):
    """The solution raised something that is no builtin exception, or could not answer."""


class Remote:
    """A function of the solution. Arguments that it changed in place are changed here too."""

    def __init__(self, name: str, source: TextIO, out: TextIO) -> None:
        self._name, self._source, self._out = name, source, out

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lines.say(self._out, "call " + values.dump([self._name, list(args), kwargs]))
        line = self._source.readline()
        if not line:
            raise SolutionError("the solution has ended")
        kind, *rest = values.load(line)
        if kind == "raised":
            name, text = rest
            known = getattr(builtins, name, None)
            exception = known if isinstance(known, type) and issubclass(known, Exception) else SolutionError
            raise exception(text if exception is not SolutionError else f"{name}: {text}")
        value, after = rest
        for before, now in zip(args, after, strict=True):
            if type(before) is type(now) and before != now:
                _become(before, now)
        return value


def _become(value: Any, other: Any) -> None:
    if isinstance(value, list):
        value[:] = other
    elif isinstance(value, dict | set):
        value.clear()
        value.update(other)


def undefined(code: str) -> list[str]:
    """Names that the code reads and nowhere binds: those of the solution."""
    tree = ast.parse(code)
    bound = set(dir(builtins)) | {"__name__", "__file__"}
    read = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            bound.add(node.id) if not isinstance(node.ctx, ast.Load) else read.append(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return [name for name in dict.fromkeys(read) if name not in bound]


def run(source: TextIO, out: TextIO, code: str) -> list[Any]:
    """["passed"], or ["failed", exception, text]: which assertion or what else ended the tests."""
    try:
        names: dict[str, Any] = {name: Remote(name, source, out) for name in undefined(code)}
        names["__name__"] = "tests"
        exec(compile(code, "tests.py", "exec"), names)
    except BaseException as error:
        return ["failed", type(error).__name__, str(error)[:500]]
    return ["passed"]


if __name__ == "__main__":
    lines.libraries()
    text = lines.read("tests.py")
    answers, channel = lines.take_pipes(errors=True)
    lines.say(channel, "done " + values.dump(run(answers, channel, text)))
