"""Inside a sandbox: the pipes to the other side, and nothing where the program's own output goes. Stands beside
`values.py`; standard library only.
"""

from __future__ import annotations

import os
import site
import sys

TYPE_CHECKING = False  # typing itself takes longer to import than most programs run
if TYPE_CHECKING:
    from typing import TextIO


def take_pipes(*, errors: bool) -> tuple[TextIO, TextIO]:
    """Lines in and lines out. What is written to stdout from now on goes nowhere; stderr too, unless `errors`."""
    out, source = os.fdopen(os.dup(1), "w", encoding="ascii"), os.fdopen(os.dup(0), encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1) if errors else (0, 1, 2):
        os.dup2(nothing, stream)
    sys.setrecursionlimit(5000)
    return source, out


def libraries() -> None:
    """Python starts without `site` here: what that brings, but for .pth files, which may import much. The folders of
    packages are the arguments."""
    sys.path += sys.argv[1:]
    site.setquit()


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogatepass") as file:
        return file.read()


def say(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()
