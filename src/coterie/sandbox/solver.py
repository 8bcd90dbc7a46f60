"""Inside a sandbox: a solution that answers calls. Its prints go nowhere, its exceptions travel by name.

Whatever the solution does to this process, it can only answer calls; it has seen neither tests nor expected answers.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

import values  # type: ignore[import-not-found]  # stands beside this file in the sandbox


def serve(source: TextIO, out: TextIO, code: str) -> None:
    names: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(code, "solution.py", "exec"), names)
        ready = "null"
    except BaseException as error:
        ready = values.dump([type(error).__name__, str(error)[:500]])
    _say(out, ready)
    for line in source:
        try:
            name, args, kwargs = values.load(line)
            result = names[name](*args, **kwargs)
            answer = values.dump(["value", result, args])
        except BaseException as error:  # also exits: the solution does not end its process by raising
            answer = values.dump(["raised", type(error).__name__, str(error)[:500]])
        _say(out, answer)


def _say(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()


if __name__ == "__main__":
    with open("solution.py", encoding="utf-8", errors="surrogatepass") as file:
        text = file.read()
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    requests = os.fdopen(os.dup(0), encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    sys.setrecursionlimit(5000)
    serve(requests, channel, text)
