"""A user's own Python file, named in a recipe or on the command line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from pathlib import Path

from coterie.errors import CoterieError, RecipeError
from coterie.streams import stream


def load_file(path: str) -> str:
    """Import a user's Python file of pieces, named in a recipe or on the command line; the name of its module."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"no such Python file: {path}", hint="give the path of a .py file that defines the piece")
    name = f"coterie_user_{file.stem}_{stream(0, str(file.resolve())):x}"
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
        except Exception as error:  # the user's code runs here
            here = str(file.resolve())
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == here]
            line = lines[-1] if lines else getattr(error, "lineno", None)  # a SyntaxError of the file itself
            raise RecipeError(
                f"importing it raised {type(error).__name__}: {error}", where=f"{path}:{line}", hint="mend the file"
            ) from error
        undo.pop_all()
    return name
