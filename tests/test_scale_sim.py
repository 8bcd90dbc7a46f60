"""The simulator of bench/scale_sim against what can be worked out by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scale_sim.calibrate import CALIBRATION, JUDGED, Call, costs_of, generating, two_kinds
from bench.scale_sim.local import LocalCosts, generation
from bench.scale_sim.simulate import Costs, Engine, Group, Work, asynchronous, learning, synchronous

COSTS = Costs(step=0.01, row=0.001, prefill=1e-4, learn=1e-3, update=0.5, sync=0.25, rows=64)
WORK = Work(groups=8, size=4, prompt=10)


def alike(length=20):
    return lambda: [length] * 4


def drawn(*lengths):
    each = itertools.cycle(lengths)
    return lambda: list(next(each))


def test_rows_of_one_length_take_steps_of_the_same_pace():
    engine = Engine(COSTS, 10)
    engine.add(Group(0, [20] * 4))
    while engine.running:
        ended = engine.advance()
    assert ended is not None and engine.now == pytest.approx(10 * 1e-4 + 20 * (0.01 + 4 * 0.001))


def test_a_row_that_ends_makes_the_others_faster():
    engine = Engine(replace(COSTS, prefill=0.0), 10)
    engine.add(Group(0, [5, 20]))
    assert engine.advance() is None and engine.now == pytest.approx(5 * 0.012)
    assert engine.advance() is not None and engine.now == pytest.approx(5 * 0.012 + 15 * 0.011)


@given(moments=st.lists(st.floats(0, 1), max_size=4))
def test_what_is_cached_slows_a_step_however_often_one_looks(moments):
    engine = Engine(replace(COSTS, prefill=0.0, slot=1e-4), 10)
    engine.add(Group(0, [5, 20], done=[0, 2]))  # the second has had two tokens
    for moment in sorted(moments):
        engine.pause(moment * 0.06)  # before the first end
    while engine.running:
        engine.advance()
    first = 5 * 0.012 + 1e-4 * (5**2 / 2 + (7**2 - 2**2) / 2)
    assert engine.now == pytest.approx(first + 13 * 0.011 + 1e-4 * (20**2 - 7**2) / 2)


def test_training_takes_longer_by_what_tokens_attend_to():
    groups, costs = [Group(0, [3, 4])], replace(COSTS, pair=1e-2)
    each = 10 * 10 / 2 + 3 * 11.5 + 4 * 12
    assert learning(costs, WORK, groups, 1) == pytest.approx(17e-3 + 1e-2 * each + 0.5)
    apart = replace(WORK, shared=False)
    assert learning(costs, apart, groups, 2) == pytest.approx((27e-3 + 1e-2 * (each + 50)) / 2 + 0.5)


def test_rows_that_wait_take_the_place_of_those_that_end():
    engine = Engine(replace(COSTS, prefill=0.0, rows=1), 10)
    engine.add(Group(0, [5, 20, 3]))
    assert len(engine.running) == 1
    while engine.running:
        engine.advance()
    assert engine.now == pytest.approx(28 * 0.011)


def test_stopped_groups_go_on_where_they_were():
    engine = Engine(replace(COSTS, prefill=0.0), 10)
    group = Group(0, [5, 20])
    engine.add(group)
    engine.advance()
    assert engine.stop() == [group] and group.done == [5, 5] and not engine.running
    other = Engine(replace(COSTS, prefill=0.0), 10)
    other.add(group)
    assert other.next_end() == pytest.approx(15 * 0.011) and other.advance() is group


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_synchronous_step_is_generation_then_learning_then_sync(workers):
    found = synchronous(COSTS, WORK, workers, alike(), 3)
    rows = 32 // workers
    generation = 8 / workers * 10 * 1e-4 + 20 * (0.01 + rows * 0.001)
    learned = 8 * (10 + 80) / workers * 1e-3 + 0.5
    assert found.seconds == pytest.approx(generation + learned + 0.25)
    assert found.stale == 0 and found.idle == pytest.approx(0, abs=1e-9)


def test_sharing_the_prompt_saves_its_copies():
    group = [Group(0, [20] * 4)]
    apart = learning(COSTS, replace(WORK, shared=False), group, 1) - learning(COSTS, WORK, group, 1)
    assert apart == pytest.approx(3 * 10 * 1e-3)


def test_exchange_bounds_learning_from_below():
    slow = replace(COSTS, exchange=100.0)
    assert learning(slow, WORK, [Group(0, [20] * 4)], 4) == pytest.approx(100.5)


def test_partial_rollouts_spare_the_tail():
    one_long = drawn(*[[10, 10, 10, 10]] * 7, [10, 10, 10, 400])
    plain = synchronous(COSTS, WORK, 4, one_long, 6)
    one_long = drawn(*[[10, 10, 10, 10]] * 7, [10, 10, 10, 400])
    partial = synchronous(COSTS, WORK, 4, one_long, 6, extra=0.5)
    assert partial.seconds < 0.7 * plain.seconds and partial.stale > 0 == plain.stale


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_asynchronous_runs_stay_within_the_bound_and_the_slower_side(generating, training, staleness, seed):
    lengths = drawn(*[[1 + (seed >> i) % 40] * 4 for i in range(5)])
    found = asynchronous(COSTS, WORK, generating, training, lengths, 8, staleness)
    assert 0 <= found.stale <= staleness and -1e-9 <= found.idle <= 1
    least = 8 * 10 / training * 1e-3 + COSTS.update  # prompts alone
    assert found.seconds >= least


def test_with_no_lateness_generation_and_learning_take_turns():
    turns = asynchronous(COSTS, WORK, 2, 2, alike(), 6, 0)
    overlap = asynchronous(COSTS, WORK, 2, 2, alike(), 6, 1)
    learned = learning(COSTS, WORK, [Group(i, [20] * 4) for i in range(8)], 2)
    assert overlap.seconds < turns.seconds
    assert turns.seconds >= learned and overlap.seconds >= learned - 1e-9


@pytest.fixture
def counted():
    """A small policy, and how often its engine does what costs time."""
    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec
    from coterie.policies.tiny import TinySpec

    policy = CausalLM.load(ModelSpec(init=TinySpec(family="qwen3", width=16, heads=2, layers=1, context=256)))
    policy.engine.forbid = policy.engine.stop_ids
    decoder, counts = policy.engine.decoder, Counter()
    step, prefill = decoder.step, decoder.prefill

    def stepped(states, tokens):
        counts["step"] += 1
        for rows in states:
            counts["row"] += len(rows)
            counts["slot"] += len(rows) * rows.used
            counts["shared"] += sum(s.count * s.most * s.width for s in rows.shared)
        step(states, tokens)

    def prefilled(prompts):
        counts["encode"] += 1
        counts["prefill"] += sum(map(len, prompts))
        return prefill(prompts)

    decoder.step, decoder.prefill = stepped, prefilled
    return policy, counts


@pytest.mark.parametrize(
    "call",
    [
        Call("all at once", [[5, 30, 12, 12]] * 4, 16, 64),
        Call("one by one", [[4 * i for i in range(1, 7)]] * 8, 16, 12),
        Call("a few very long", two_kinds(20, 4, 0, 6, 200, 0.04), 16, 16),
    ],
    ids=lambda call: call.name,
)
def test_the_local_engine_does_what_is_simulated(call, counted):
    policy, counts = counted
    generating(policy, call)()
    simulated = {name: call.simulated(LocalCosts(**{name: 1.0})) for name in counts}
    for name in ("step", "encode", "prefill"):
        assert simulated[name] == counts[name], name
    for name in ("row", "slot", "shared"):
        assert simulated[name] == pytest.approx(counts[name], rel=0.1), name


def test_rows_that_come_late_have_the_slots_of_those_beside_them():
    """Two rows at a time: one of 20 tokens, and beside it one of 4 and then another. The first token of each costs no
    step, so they end after 3 and, let in a step later, after 7 steps.
    """
    found = generation(LocalCosts(slot=1.0, rows=2), 8, [[20], [4], [4]])
    assert found == pytest.approx(2 * 7**2 / 2 + (19**2 - 7**2) / 2)


def test_costs_are_found_in_the_times_they_make():
    true = LocalCosts(
        step=5e-3,
        row=1e-4,
        slot=1e-7,
        shared=2e-8,
        prefill=3e-5,
        encode=4e-3,
        move=5e-8,
        learn=1e-4,
        pair=1e-8,
        update=0.1,
    )
    found = costs_of(CALIBRATION, [call.simulated(true) for call in CALIBRATION])
    assert np.allclose(list(vars(found).values()), list(vars(true).values()), rtol=1e-4, atol=0)


def test_no_call_that_judges_calibrates():
    shapes = [[(c.groups, c.prompt, c.rows) for c in calls] for calls in (CALIBRATION, JUDGED)]
    assert not any(shape in shapes[0] for shape in shapes[1])
