from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox.test_hostile import needed

from coterie.sandbox import Limits, Sandbox, values
from coterie.sandbox.testing import run_tests

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(), max_size=3)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Equal, with equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)  # type: ignore[call-overload, index]
    return a == b


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    assert same(values.load(values.dump(value)), value)


def test_other_values_do_not_pass() -> None:
    assert math.isnan(values.load(values.dump(math.nan)))
    for value in (object(), lambda: 0, iter([]), [object()]):
        with pytest.raises(values.Unplain, match="cannot pass"):
            values.dump(value)
    for text in ('{"a": 1}', '["x", []]', "[1, 2]", '["d", 3]', "[]"):
        with pytest.raises((values.Unplain, TypeError, ValueError)):
            values.load(text)


@needed
@pytest.mark.parametrize(
    ("solution", "tests", "outcome"),
    [
        ("def f(x, *, y=1): return x + y", "assert f(1) == 2 and f(1, y=4) == 5", "passed"),
        ("def f(x): return x", "assert f(1) == 2, 'one more'", "failed"),
        ("def f(x): x.append(3)", "a = [1]\nassert f(a) is None\nassert a == [1, 3]", "passed"),
        ("def f(x): return {(1, 2): {x}, None: b'a'}", "assert f(1.5) == {(1, 2): {1.5}, None: b'a'}", "passed"),
        (
            "def f(x): raise ValueError('negative')",
            "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'negative'",
            "passed",
        ),
        ("class Odd(Exception): pass\ndef f(x): raise Odd(3)", "f(1)", "failed"),
        ("def f(x): print('hello'); return input", "f(1)", "failed"),
        ("def f(x): print('hello'); return x", "print('hello'); assert f(1) == 1", "passed"),
        ("def f(x) return x", "assert f(1) == 1", "broken"),
        ("raise KeyError('a')", "assert f(1) == 1", "broken"),
        ("def f(x):\n    while True: pass", "assert f(1) == 1", "timeout"),
        ("def f(x): return x", "while True: pass", "timeout"),
        ("def f(x): return bytearray(1 << 40)", "assert f(1)", "failed"),
        ("def f(x): return type(exit).__name__", "assert f(1) == 'Quitter'", "passed"),
        (
            "import sys\ndef f(x): return sys.path[-1]",
            "import sys\nassert f(1) == sys.path[-1]",
            "passed",
        ),
        ("def f(x): return x", "def check(g):\n    assert g(2) == 2\ncheck(f)", "passed"),
        (
            "def f(x): return x\ndef g(x): return f(x) + 1",
            "import math\nassert f(3) + g(3) == math.floor(7.5)",
            "passed",
        ),
    ],
)
def test_solutions_and_tests(solution: str, tests: str, outcome: str) -> None:
    assert run_tests(Sandbox(Limits(seconds=3.0)), solution, tests).outcome == outcome
