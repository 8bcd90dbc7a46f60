"""What a program in the sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.errors import RecipeError


@dataclass(frozen=True)
class Limits:
    """seconds: wall clock; cpu_seconds: of each process; memory_mib: of all processes together; file_mib: of all files
    together; files: open at once in a process, and ever created; processes: at once, threads counted; output_kib: of
    stdout and stderr together. More than that ends the program.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_mib: int = 512
    file_mib: int = 16
    files: int = 64
    processes: int = 16
    output_kib: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise RecipeError(f"the sandbox's limit {name} must be above 0, got {value!r}", hint=f"{name}=10")
