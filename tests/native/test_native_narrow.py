"""Processors without AVX-512 compute the same, in vectors half as wide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.native import functions

HERE = Path(__file__).parent
SOME = "widths or gate or asked or far_apart or scored_at_once"


def _wide() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@pytest.mark.skipif(functions() is None or not _wide(), reason="no compiler, or no processor with AVX-512")
def test_narrower_vectors():
    ours = {**os.environ, "CC": f"{os.environ.get('CC') or 'cc'} -mno-avx512f"}
    options = ["-rs", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", f"({SOME}) and not bfloat16"]
    files = [str(HERE / f"test_native_{part}.py") for part in ("attention", "cut", "decode", "draw", "pieces")]
    command = [sys.executable, "-m", "pytest", *options, *files]
    told = subprocess.run(command, env=ours, cwd=HERE.parents[1], capture_output=True, text=True)
    assert told.returncode == 0 and "SKIPPED" not in told.stdout, told.stdout[-3000:]
