"""Inside a sandbox: a solution that answers calls. Its prints go nowhere, its exceptions travel by name.

Whatever the solution does to this process, it can only answer calls; it has seen neither tests nor expected answers.
"""

from __future__ import annotations

import lines  # type: ignore[import-not-found]
import values  # type: ignore[import-not-found]  # both stand beside this file in the sandbox

TYPE_CHECKING = False  # typing itself takes longer to import than most programs run
if TYPE_CHECKING:
    from typing import Any, TextIO


def serve(source: TextIO, out: TextIO, code: str) -> None:
    names: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(code, "solution.py", "exec"), names)
        ready = "null"
    except BaseException as error:
        ready = values.dump([type(error).__name__, str(error)[:500]])
    lines.say(out, ready)
    for line in source:
        try:
            name, args, kwargs = values.load(line)
            result = names[name](*args, **kwargs)
            answer = values.dump(["value", result, args])
        except BaseException as error:  # also exits: the solution does not end its process by raising
            answer = values.dump(["raised", type(error).__name__, str(error)[:500]])
        lines.say(out, answer)


if __name__ == "__main__":
    lines.libraries()
    text = lines.read("solution.py")
    requests, channel = lines.take_pipes(errors=False)
    serve(requests, channel, text)
