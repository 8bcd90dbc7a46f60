"""Groups are ready in any order, and still none is trained on too late, twice or never."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.scale import weights
from coterie.scale.tickets import Ledger, Ticket
from coterie.scale.weights import Packer, unpack


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2**16))
def test_no_group_is_too_late(prompts: int, staleness: int, extra: int, seed: int) -> None:
    """Batches of `prompts`, some with a second round of up to `extra` more, from groups that end in random order."""
    rng, ledger = random.Random(seed), Ledger(prompts, staleness)
    working: dict[int, int] = {}
    trained: list[int] = []
    drawn = 0

    def ask(step: int, places: int) -> None:
        nonlocal drawn
        for _ in range(ledger.room(places)):
            ledger.give(Ticket(drawn, 0, (drawn,)), step)
            working[drawn] = step
            drawn += 1

    for step in range(12):
        ready: list[int] = [n for n in working if rng.random() < 0.3]
        for count in (prompts, rng.randint(0, extra)):
            places = count
            while places:
                ask(step, places)
                found = next((n for n in ready if ledger.may_take(n, step, places)), None)
                if found is None:
                    ready.append(rng.choice([n for n in working if n not in ready]))  # there always is one
                    continue
                ready.remove(found)
                ledger.take(found)
                assert 0 <= step - working.pop(found) <= staleness
                trained.append(found)
                places -= 1
            ask(step, 0)
        assert len(ledger.outside) <= staleness * prompts
    assert sorted([*trained, *ledger.outside]) == list(range(drawn))


def test_a_group_that_is_late_goes_before_one_that_is_ready() -> None:
    ledger = Ledger(1, 1)
    for number, step in ((0, 0), (1, 0)):
        ledger.give(Ticket(number, 0, ()), step)
    assert ledger.may_take(1, 0, 1) and ledger.room(0) == 0  # the other can still come in step 1
    ledger.take(1)
    assert ledger.may_take(0, 1, 1)
    ledger.give(Ticket(2, 0, ()), 1)
    assert not ledger.may_take(2, 1, 1)  # ticket 0 has to come now


@pytest.mark.parametrize("large", [1, 40, 2**20])
@pytest.mark.parametrize("size", [1, 64, 2**20])
def test_weights_arrive_as_they_were(size: int, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE", large)
    torch.manual_seed(0)
    state = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(()), "d": torch.randn(4, 4).t()}
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    packer = Packer(size)
    for change in range(3):  # the bucket is used again
        state["b"][change] += 1
        buckets = [bucket.copy() for bucket in packer.pack(state)]
        assert (len(buckets) == 1) == (size == large == 2**20)
        for bucket in buckets:
            bucket.flags.writeable = False  # as from shared memory
        assert unpack(buckets, other) == packer.digest
        for name in state:
            assert torch.equal(state[name], other[name])
    buckets[-1] = buckets[-1].copy()
    buckets[-1][0] ^= 1
    assert unpack(buckets, other) != packer.digest
    assert sum(not torch.equal(state[name], other[name]) for name in state) == 1
    with pytest.raises(ValueError, match="missing"):
        unpack([np.zeros(0, np.uint8)], other)
