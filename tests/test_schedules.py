from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coterie.schedules import Schedule, looks_like_schedule, resolve


def schedule(**values: Any) -> Schedule:
    return Schedule.model_validate({"from": 1.0, "to": 0.2, "over": 200, **values})


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.6), ("cosine", 0.6), ("exponential", math.sqrt(0.2)), ("step", 1.0)]
)
def test_shapes_at_start_middle_and_end(shape: str, middle: float) -> None:
    s = schedule(shape=shape)
    assert s.at(0) == 1.0
    assert s.at(100) == pytest.approx(middle)
    assert s.at(200) == pytest.approx(0.2) and s.at(10_000) == pytest.approx(0.2)


def test_shapes_by_hand_at_a_quarter() -> None:
    assert schedule().at(50) == pytest.approx(0.8)
    assert schedule(shape="cosine").at(50) == pytest.approx(1 - 0.8 * (0.5 - 0.5 * math.cos(math.pi / 4)))
    assert schedule(shape="exponential").at(50) == pytest.approx(0.2**0.25)
    assert schedule(shape="step").at(199) == 1.0


def test_a_schedule_may_start_from_a_schedule() -> None:
    """Warm-up, peak, decay, valley: linear 0 -> .9 over 10, cosine .9 -> .05 over 100, then .05."""
    rise = {"from": 0.0, "to": 0.9, "over": 10}
    s = Schedule.model_validate({"from": rise, "to": 0.05, "over": 100, "after": 10, "shape": "cosine"})
    assert [s.at(n) for n in (0, 5, 10, 110, 500)] == pytest.approx([0.0, 0.45, 0.9, 0.05, 0.05])
    assert s.at(60) == pytest.approx(0.475)
    assert s.lowest == 0.0 and schedule().lowest == 0.2
    assert Schedule.model_validate(s.model_dump(by_alias=True)) == s


def test_it_waits_until_after() -> None:
    s = schedule(after=10, over=4)
    assert [s.at(n) for n in (0, 10)] == [1.0, 1.0]
    assert s.at(12) == pytest.approx(0.6) and s.at(14) == pytest.approx(0.2)


def test_exponential_through_zero_falls_back_to_a_line() -> None:
    assert schedule(to=0.0, shape="exponential").at(100) == pytest.approx(0.5)


@given(
    st.floats(-10, 10), st.floats(-10, 10), st.integers(1, 50), st.integers(0, 20),
    st.sampled_from(["linear", "cosine", "exponential", "step"]), st.integers(0, 100),
)  # fmt: skip
def test_it_moves_monotonically_between_its_ends(a: float, b: float, over: int, after: int, shape: str, n: int) -> None:
    s = Schedule.model_validate({"from": a, "to": b, "over": over, "after": after, "shape": shape})
    low, high = min(a, b) - 1e-9, max(a, b) + 1e-9
    assert low <= s.at(n) <= high
    assert abs(s.at(n) - a) <= abs(s.at(n + 1) - a) + 1e-9


@pytest.mark.parametrize("bad", [{"over": 0}, {"over": -3}, {"after": -1}, {"shape": "wavy"}, {"until": 4}])
def test_bad_schedules_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schedule(**bad)


def test_resolve_leaves_other_values_alone() -> None:
    assert resolve(schedule(), 100) == pytest.approx(0.6)
    for value in (0.5, "std", None, {"from": 1}):
        assert resolve(value, 3) is value


def test_looks_like_schedule() -> None:
    assert looks_like_schedule({"from": 1, "to": 2, "over": 3})
    assert not looks_like_schedule({"to": 2}) and not looks_like_schedule(0.5) and not looks_like_schedule("from")
