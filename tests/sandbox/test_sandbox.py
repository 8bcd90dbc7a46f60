from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sandbox.test_hostile import BACKENDS, needed

from coterie.errors import RecipeError, SandboxError
from coterie.sandbox import Limits, Sandbox, process, sandbox, seccomp
from coterie.sandbox.process import JAIL


@needed
@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_get_input_and_files_and_give_output(backend: str) -> None:
    box = Sandbox(backend=backend)  # type: ignore[arg-type]
    code = "import sys, helper\nprint(helper.twice(int(input())))\nprint('é', file=sys.stderr)\nopen('x', 'w').close()"
    result = box.python(code, stdin="21\n", files={"helper.py": "def twice(x): return 2 * x"})
    assert result.ok and (result.stdout, result.stderr, result.exit_code) == ("42\n", "é\n", 0)
    assert box.python("import os; print(sorted(os.listdir('.')))").stdout == "['main.py']\n"  # nothing of the last one
    assert box.python("import sys; sys.exit(3)").exit_code == 3
    assert box.python("1/0").outcome == "error"
    assert box.python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").outcome == "killed"
    assert box.run(["/bin/sh", "-c", "cat main.py"], files={"main.py": "a" * 5000}).stdout == "a" * 5000
    assert box.python("import sys; print(len(sys.stdin.read()))", stdin="x" * 10**6).stdout == "1000000\n"


@needed
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("while True: pass", "timeout"),
        ("import time; time.sleep(60)", "timeout"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
        ("while True: print('x' * 10000)", "output"),
        ("import os, time\nfor _ in range(40):\n    if os.fork() == 0: time.sleep(60)", "error processes memory"),
    ],
)
def test_each_limit_ends_a_program_and_is_named(backend: str, code: str, outcome: str) -> None:
    seconds = 1.5 if outcome == "timeout" else 30  # the others must be ended for what they are, on a busy machine too
    limits = Limits(seconds=seconds, memory_mib=256, processes=8)
    assert Sandbox(limits, backend=backend).python(code).outcome in outcome.split()  # type: ignore[arg-type]


@needed
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_machine_itself_refuses_more_processes(backend: str) -> None:
    """Looking at them now and then is too late on a busy machine: a fork bomb doubles faster than we look."""
    if os.geteuid() == 0 and process._identity() is None:
        pytest.skip("root without privileges cannot give programs a user of their own")
    code = (
        "import os, time\nstarted = 0\ntry:\n    while started < 40:\n        if os.fork() == 0: time.sleep(60)\n"
        "        started += 1\nexcept BlockingIOError: print(started)"
    )
    result = Sandbox(Limits(processes=8), backend=backend).python(code)  # type: ignore[arg-type]
    assert result.ok and 4 < int(result.stdout) < 8


@needed
def test_a_program_dies_with_whoever_started_it() -> None:
    """The supervisor ends the program when its pipe closes, also when that is because the parent was killed."""
    script = (
        "from coterie.sandbox import Sandbox, Limits\nimport os\n"
        "p = Sandbox(Limits(seconds=100)).start(['/bin/sleep', '77.125'])\n"
        "import time; time.sleep(1); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    for _ in range(100):
        if b"77.125" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout:
            return
    raise AssertionError("it goes on running")


def test_without_a_sandbox_it_refuses_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)

    def broken(*args: object) -> None:
        raise OSError("no namespaces")

    monkeypatch.setattr(sandbox, "Program", broken)
    detect = sandbox.detect.__wrapped__
    with pytest.raises(SandboxError, match="bubblewrap is not installed") as caught:
        detect()
    assert "namespaces: no namespaces" in str(caught.value) and "backend='none'" in str(caught.value)


def test_without_protection_it_warns_and_still_limits() -> None:
    with pytest.warns(UserWarning, match="without a sandbox"):
        box = Sandbox(Limits(seconds=1.0), backend="none")
    result = box.python("import os; print(os.path.exists('main.py')); open('x', 'w').write('y')")
    assert result.ok and result.stdout == "True\n"
    assert box.python("while True: pass").outcome == "timeout"


def test_limits_and_names_are_checked() -> None:
    with pytest.raises(RecipeError, match="memory_mib"):
        Limits(memory_mib=0)
    with pytest.warns(UserWarning):
        box = Sandbox(backend="none")
    with pytest.raises(SandboxError, match="no name for a file"):
        box.python("pass", files={"../x": ""})


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_program_whose_jumps_stay_inside(machine: str) -> None:
    import struct

    text = seccomp.program(machine)
    lines = [struct.unpack("=HBBI", text[i : i + 8]) for i in range(0, len(text), 8)]
    assert 64 < len(lines) < 4096
    for here, (operation, yes, no, _) in enumerate(lines):
        if operation & 7 == 5:
            assert here + 1 + max(yes, no) < len(lines)
    assert lines[-1] == (6, 0, 0, 0x7FFF0000)
    assert seccomp.program("pdp11") == b""


def test_what_runs_inside_needs_the_standard_library_alone() -> None:
    for name in ("jail.py", "values.py", "solver.py", "tester.py"):
        code = f"import sys; sys.path.insert(0, {str(JAIL.parent)!r}); import {name[:-3]}"
        subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
