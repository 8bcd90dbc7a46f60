"""The peers' environments. Each is its own, so that no version of theirs binds one of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import BenchError

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "bench" / "scratch"
TRL_HOME = ROOT / "bench" / ".venv-trl"
TRL = ["trl==1.16.0", "transformers", "datasets", "accelerate", "pydantic"]
"""pydantic is for coterie.tasks, whose verifiers reward both sides (bench/rewards.py)."""
LIGER = ["liger-kernel==0.8.0", "triton==3.9.0"]


def trl_python() -> Path:
    """The interpreter of bench/.venv-trl, made when missing with the versions of constraints.txt where it names one."""
    python = TRL_HOME / "bin" / "python"
    done = TRL_HOME / ".ready"
    if done.exists() and done.read_text() == " ".join(TRL):
        return python
    print("setting up bench/.venv-trl (a few minutes, once)", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    for command in ([sys.executable, "-m", "venv", str(TRL_HOME)], [*pip, "torch"], [*pip, *TRL]):
        if subprocess.run(command).returncode:
            raise BenchError(f"cannot set up the TRL environment: {' '.join(command)} failed")
    done.write_text(" ".join(TRL))
    return python


def liger_path() -> Path:
    """A folder with Liger, for TRL's interpreter to find behind its own packages; made when missing."""
    folder = SCRATCH / "liger"
    done = folder / ".ready"
    if not done.exists() or done.read_text() != " ".join(LIGER):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(folder)]
        if subprocess.run([*command, *LIGER]).returncode:
            raise BenchError(f"cannot set up Liger: {' '.join(command)} failed")
        done.write_text(" ".join(LIGER))
    return folder
