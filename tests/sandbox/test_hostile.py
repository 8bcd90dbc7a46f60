from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox.hostile import CHEATS, PROGRAMS

from coterie.errors import SandboxError
from coterie.sandbox import Limits, Sandbox
from coterie.sandbox.sandbox import python
from coterie.sandbox.testing import run_tests

LIMITS = Limits(seconds=1.0, cpu_seconds=3, memory_mib=192, file_mib=8, files=64, processes=12, output_kib=64)
TESTS = "import math\nassert f(1) == 2\nassert [f(x) for x in range(3)] == [1, 2, 3]\nassert math.isclose(f(9), 10)\n"


def works(backend: str) -> bool:
    try:
        return Sandbox(backend=backend).python("pass").ok  # type: ignore[arg-type]
    except (SandboxError, OSError):
        return False


BACKENDS = [backend for backend in ("namespaces", "bubblewrap") if works(backend)]
needed = pytest.mark.skipif(not BACKENDS, reason="no sandbox can be made on this machine")


@pytest.fixture(scope="module")
def listener() -> Iterator[int]:
    """A server on loopback and on an abstract socket; whoever reaches it is told so."""
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"\0coterie-test-{port}")
    local.listen()

    def serve(one: socket.socket) -> None:
        while True:
            try:
                one.accept()[0].close()
            except OSError:
                return

    for one in (server, local):
        threading.Thread(target=serve, args=(one,), daemon=True).start()
    yield port
    server.close()
    local.close()


@needed
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_programs_fail_safely(
    name: str, backend: str, tmp_path: Path, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTERIE_SECRET", "PWNED")
    secret, marker = tmp_path / "secret.txt", tmp_path / "marker"
    secret.write_text("PWNED")
    code = PROGRAMS[name]
    for key, value in {"secret": secret, "marker": marker, "parent": os.getpid(), "port": listener}.items():
        code = code.replace("{" + key + "}", str(value))
    box, token = Sandbox(LIMITS, backend=backend), f"token-{uuid.uuid4()}"  # type: ignore[arg-type]
    result = box.run([*python("main.py"), token], files={"main.py": code})
    assert "PWNED" not in result.stdout + result.stderr.replace("print('PWNED", "")
    assert token not in running(), "something it started is still there"
    assert not marker.exists() and secret.read_text() == "PWNED"
    # between two looks at it a fork bomb grows as fast as the machine lets it
    assert result.seconds < LIMITS.seconds + 5 and result.peak_mib < 8 * LIMITS.memory_mib
    assert len(result.stdout) + len(result.stderr) <= LIMITS.output_kib << 10


@needed
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(name: str) -> None:
    tested = run_tests(Sandbox(LIMITS), CHEATS[name], TESTS)
    assert not tested.passed and "PWNED" not in tested.message


def running() -> str:
    """The command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except OSError:
            continue  # it has just ended
    return "\n".join(lines)
