"""A user's own Python file, named in a recipe or on the command line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from coterie.errors import CoterieError, RecipeError
from coterie.streams import stream

USER_MODULE = "coterie_user_"
"""How the names of these files' modules begin."""


def load_file(path: str) -> str:
    """Import a user's Python file of pieces, named in a recipe or on the command line; the name of its module."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"no such Python file: {path}", hint="give the path of a .py file that defines the piece")
    name = f"{USER_MODULE}{file.stem}_{stream(0, str(file.resolve())):x}"
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(file.resolve()):
        return name
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with contextlib.ExitStack() as undo:
        sys.modules[name] = module
        undo.callback(sys.modules.pop, name)
        try:
            spec.loader.exec_module(module)
        except CoterieError:
            raise
        except (Exception, SystemExit) as error:  # the user's code runs here
            line = _line(error, str(file.resolve()))
            raise RecipeError(
                f"importing it raised {type(error).__name__}: {error}", where=f"{path}:{line}", hint="mend the file"
            ) from error
        undo.pop_all()
    return name


@contextlib.contextmanager
def blamed(module: str, what: str) -> Iterator[None]:
    """Turn what a user's own file raises inside into an error that names its line; of other modules it is a bug of ours
    and stays what it is.
    """
    try:
        yield
    except CoterieError:
        raise
    except Exception as error:  # the user's code runs here
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or not module.startswith(USER_MODULE):
            raise
        raise RecipeError(
            f"{what} raised {type(error).__name__}: {error}", where=f"{file}:{_line(error, file)}", hint="mend the file"
        ) from error


def _line(error: BaseException, file: str) -> int | None:
    """The last line of a file that an error came through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return lines[-1] if lines else getattr(error, "lineno", None)  # a SyntaxError of the file itself
