from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coterie.streams import stream, streams

KEYS = st.lists(st.integers() | st.text(max_size=5), max_size=3)


@given(st.integers(), KEYS, st.integers(0, 12))
def test_several_streams_are_those_of_each(seed, keys, count):
    assert streams(count, seed, *keys) == [stream(seed, *keys, i) for i in range(count)]


def test_streams_stay_what_they_were():
    """Another number would change every run that is resumed."""
    assert stream(0, "rollout", 3, 0, 7, 1) == 399382485761427844
