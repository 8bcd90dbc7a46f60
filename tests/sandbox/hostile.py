"""Programs that try to get out, to harm the machine or to cheat a grader: programs.txt and cheats.txt beside this file.

None may print PWNED or leave a trace. In the programs, {secret} is a file outside that they must not read, {marker} one
that they must not make, {parent} the process id of the tests, {port} a port somebody listens on. The cheats are
solutions of "f(x) is x + 1" that are none.
"""

from __future__ import annotations

from pathlib import Path


def _read(name: str) -> dict[str, str]:
    blocks = (Path(__file__).parent / name).read_text().split("### ")[1:]
    return {title: code for title, _, code in (b.partition("\n") for b in blocks)}


PROGRAMS = _read("programs.txt")
CHEATS = _read("cheats.txt")
