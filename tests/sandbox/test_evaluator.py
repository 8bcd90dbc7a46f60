from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from coterie.sandbox import Limits
from coterie.sandbox.evaluator import LONGEST, Evaluator

LIMITS = Limits(seconds=600.0, cpu_seconds=2, memory_mib=128)


@pytest.fixture
def evaluator() -> Iterator[Evaluator]:
    made = Evaluator(LIMITS)
    yield made
    made.close()


def test_expressions_share_a_sandbox_and_nothing_else(evaluator: Evaluator) -> None:
    assert evaluator.value("6*7") == "42"
    first = evaluator._program
    for failing in ("1/0", "(", "__import__('os')._exit(7)", "undefined", "b'\\xff'.decode()"):
        assert evaluator.value(failing) == ""
    assert evaluator.value("'x'*1000") == "x" * LONGEST
    assert evaluator.value("globals().update(a=1) or setattr(__import__('builtins'), 'str', repr)") == "None"
    assert evaluator.value("'a'") == "a" and evaluator.value("a") == ""  # what the last one changed is gone with it
    assert evaluator.value("__import__('os').path.exists('/root/.ssh') or open('/etc/passwd').read()") == ""
    assert evaluator.value("__import__('socket').create_connection(('127.0.0.1', 22))") == ""
    assert evaluator._program is first


HOSTILE = {
    "kills all": "__import__('os').kill(-1, 9)",
    "kills its parent": "__import__('os').kill(__import__('os').getppid(), 9)",
    "answers for the next": "__import__('os').write(1, b'666\\n666.\\n')",
    "writes to the server's pipe": "open(f'/proc/{__import__(\"os\").getppid()}/fd/1', 'w').write('3636.\\n')",
    "writes to the server's memory": "open(f'/proc/{__import__(\"os\").getppid()}/mem', 'wb').write(b'x')",
    "forks": "[__import__('os').fork() for _ in range(20)]",
    "stays": "__import__('os').fork() or __import__('os').setsid() or __import__('time').sleep(99)",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_next_expression_is_answered_as_ever(kind: str, evaluator: Evaluator) -> None:
    evaluator.value(HOSTILE[kind], attempts=1)
    assert [evaluator.value(f"{n}+1") for n in range(5)] == ["1", "2", "3", "4", "5"]


def test_one_that_takes_too_long_has_no_value(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluator.value("9**9**9", attempts=1) in (
        None,
        "",
    )  # its own processor time or the clock, whichever is first
    assert evaluator.value("2+2") == "4"


def test_closing_ends_the_sandbox() -> None:
    made = Evaluator(LIMITS)
    assert made.value("1") == "1"
    assert made._program is not None
    pid = made._program._process.pid
    made.close()
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
