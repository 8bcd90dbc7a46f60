"""Files a reader sees whole: the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.errors import RunError


@contextmanager
def replacing(path: Path, what: str, hint: str = "free space on the disk or mend its permissions") -> Iterator[Path]:
    """A temporary file to write, which takes the place of `path` when the block ends well, and is removed if not.

    An OSError on the way becomes a RunError: "`what` could not be written".
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        message = f"{what} could not be written: {error.strerror or error}"
        raise RunError(message, where=str(path), hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
