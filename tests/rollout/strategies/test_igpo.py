"""IGPO: pieces of a solution in the canvas of prompts that nobody solved, and which of their tokens teach."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.igpo import canvas, loss, replaced, teaches

from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect as collect_batch
from coterie.credit import group_norm
from coterie.errors import RecipeError
from coterie.loop import credit, select
from coterie.metrics import Collector, collect
from coterie.recipe import resolve
from coterie.rollout.strategies.inpainted import cut, inpainted, lay_out, reveal
from coterie.rollouts import Rollouts, Sampling
from coterie.run import Run
from coterie.selection import top_given
from coterie.streams import stream
from coterie.update import update
from tests.e2e.conftest import TINY

WIDTH, SIZE = 8, 4
MASKED = [*TINY, "model.kind=masked_diffusion", "unmask.steps=2", f"rollout.max_tokens={WIDTH}"]
SMALL = "rollout.strategy={inpainted: {chunk: [1, 2], most: 2}}"
SEEDS = [[10 * g + k for k in range(SIZE)] for g in range(3)]
SPEC = Sampling(max_tokens=WIDTH)
SOLUTION = "01230123"


@pytest.fixture(scope="module")
def run() -> Run:
    return build(resolve(method="igpo", overrides=[*MASKED, SMALL]))


def roll(run: Run, plain: Any, told: Any, **settings: Any) -> tuple[Rollouts, dict[str, float]]:
    """Three groups of four with these verdicts, [3][4], before and after pieces were given."""
    prompts = [run.prompt(i) for i in range(3)]
    asked = iter(
        [v for own in plain for v in own] + [v for g, own in enumerate(told) if not any(plain[g]) for v in own]
    )
    with collect(seen := Collector()):
        made = inpainted(
            run.policy, prompts, SEEDS, SPEC, True, lambda row: SOLUTION, lambda text, row: next(asked),
            **{"chunk": (1, 2), "most": 2, **settings},
        )  # fmt: skip
    return made, seen.means()


@given(length=st.integers(0, 60), least=st.integers(1, 9), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_chunks_follow_each_other(length: int, least: int, more: int, seed: int) -> None:
    chunks = cut(length, (least, least + more), Random(seed))
    ends = [0, *(stop for _, stop in chunks)]
    assert [start for start, _ in chunks] == ends[:-1]
    assert all(least <= stop - start <= least + more for start, stop in chunks)
    assert length - ends[-1] < least
    shown = reveal(chunks, 0.3, Random(seed))
    assert shown == sorted(shown) and {*shown} <= {*chunks}
    assert len(shown) == len(chunks) - int(0.7 * len(chunks))


@pytest.mark.oracle("igpo")
@given(
    length=st.integers(0, 40), width=st.integers(1, 60), kept=st.integers(0, 5), stretch=st.floats(1, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_canvases_against_the_oracle(length: int, width: int, kept: int, stretch: float, seed: int) -> None:
    chance, room = Random(seed), max(width - kept, 0)
    tokens = [chance.randrange(9) for _ in range(length)]
    chunks = reveal(cut(min(length, room), (2, 5), chance), chance.random(), chance)
    got = lay_out(tokens, chunks, width, room, stretch)
    assert got == canvas(tokens, chunks, width, room, stretch)
    assert len(got) == width and all(x == -1 for x in got[room:])
    if length >= room:  # nothing is stretched
        assert all(got[t] == (tokens[t] if any(a <= t < b for a, b in chunks) else -1) for t in range(room))


@pytest.mark.oracle("igpo")
def test_numbers_of_the_source() -> None:
    """Right ones 0, 2, 3 in the order 2, 0, 3 and two slots; the advantages of the group that comes of it."""
    assert replaced([False] * 4, [True, False, True, True], [2, 0, 3, 1], 2) == [2, 0, -1, -1]
    advantages = group_norm(torch.tensor([3.0, 3.0, 0.0, 0.0]), torch.zeros(4).long(), scale="none")
    assert advantages.tolist() == [1.5, 1.5, -1.5, -1.5]


@pytest.mark.oracle("igpo")
@pytest.mark.parametrize("seed", range(4))
def test_right_ones_take_the_place_of_failures(run: Run, seed: int) -> None:
    draw = np.random.default_rng(seed)
    plain, told = (draw.random((3, SIZE)) < 0.2).tolist(), (draw.random((3, SIZE)) < 0.6).tolist()
    plain[1], told[2] = [False] * SIZE, [False] * SIZE
    made, seen = roll(run, plain, told)
    base, _ = roll(run, [[True] * SIZE] * 3, told)
    assert made["groups"].tolist() == [g for g in range(3) for _ in range(SIZE)] == base["groups"].tolist()
    swapped = 0
    for g in range(3):
        order = [i for i in range(SIZE) if told[g][i]]
        Random(stream(stream(SEEDS[g][0], "inpaint"), "order")).shuffle(order)
        for slot, number in enumerate(replaced(plain[g], told[g], order, 2)):
            row = g * SIZE + slot
            source = SEEDS[g][slot] if number < 0 else stream(SEEDS[g][number], "inpaint")
            assert int(made.media["noise"][row]) == source
            if number < 0:
                assert not made["given"][row].any()
                assert torch.equal(made.media["canvas"][row], base.media["canvas"][row])
            swapped += number >= 0
    assert seen["inpaint/swapped_share"] == pytest.approx(swapped / 12)
    assert seen["inpaint/failed_share"] == pytest.approx(sum(not any(v) for v in plain) / 3)


def test_what_is_given_stands_in_the_canvas_and_is_marked(run: Run) -> None:
    made, seen = roll(run, [[False] * SIZE] * 3, [[True] * SIZE] * 3, low=0.5, high=0.5, most=4)
    solution = torch.tensor(run.policy.encode_completion(SOLUTION))
    there = made["given"]
    room = WIDTH - int(0.12 * WIDTH)
    assert there.any(-1).all() and not there[:, room:].any()
    assert (made.media["canvas"] == solution)[there].all()
    assert (made.media["unmasked"] == -1)[there].all() and (made["logp_old"] == 0)[there].all()
    assert (
        made["mask"][there].all() and (made["lengths"] == made["mask"].sum(-1)).all()
    )  # estimates know their log-prob
    with torch.no_grad():
        assert (run.policy.score(made)["logp"][there] < 0).all()
    assert 0.3 < seen["inpaint/told_share"] < 0.9


def test_replayed_likelihoods_leave_given_tokens_out() -> None:
    exact = build(resolve(method="igpo", overrides=[*MASKED, SMALL, "unmask.likelihood=trajectory"]))
    made, _ = roll(exact, [[False] * SIZE] * 3, [[True] * SIZE] * 3, most=4)
    assert made["given"].any() and not (made["mask"] & made["given"]).any()
    with torch.no_grad():
        logp = exact.policy.score(made)["logp"]
    torch.testing.assert_close(logp[made["mask"]], made["logp_old"][made["mask"]], atol=1e-5, rtol=0)


def test_a_prompt_without_a_demonstration_keeps_its_rollouts(run: Run) -> None:
    prompts = [run.prompt(i) for i in range(3)]
    made = inpainted(run.policy, prompts, SEEDS, SPEC, False, lambda row: None, lambda text, row: False)
    assert not made["given"].any() and len(made) == 12
    short, seen = roll(run, [[False] * SIZE] * 3, [[True] * SIZE] * 3, chunk=(9, 10))
    assert not short["given"].any() and seen["inpaint/swapped_share"] == 0.5  # sampled again, with nothing given
    with pytest.raises(RecipeError, match="no ranges"):
        roll(run, [[False] * SIZE] * 3, [[True] * SIZE] * 3, low=0.7)


def test_through_the_loop_it_teaches_where_nothing_is_right(run: Run) -> None:
    run.metrics = {}
    with collect(seen := Collector()):
        batch = collect_batch(run, 0, Clock())
        assert batch is not None
        batch = select(run, credit(run, batch, 0, Clock()), 0, Clock())
    found = seen.means()
    assert found["inpaint/failed_share"] > 0 and found["inpaint/swapped_share"] > 0
    assert found["weights/given_kept_share"] < 1
    update(run, batch, 0, Clock())
    assert run.metrics["grad/norm"] > 0
    with pytest.raises(RecipeError, match="drives a policy of unmaskings"):
        build(resolve(overrides=[*TINY, SMALL]))
    with pytest.raises(RecipeError, match=r"rollout\.strategy=inpainted does"):
        build(resolve(overrides=[*MASKED, "selection.weights=[top_given]"]))


@pytest.mark.oracle("igpo")
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_filter_and_the_loss_against_the_oracle(kind: str) -> None:
    recipe = resolve(method="igpo", values={"task": "sort"})
    for seed in range(3):
        n = inputs.table(kind, seed)
        t = inputs.tensors(n) | {"weights": torch.ones(len(n["rewards"]), dtype=torch.float64)}
        for share in (0.2, 0.5):
            weights = top_given(t["given"], t["entropy"], t["mask"], t["weights"], share=share)
            taught = teaches(n["given"], n["entropy"], n["mask"], share)
            assert np.array_equal(weights.numpy() != 0, taught)
        weights = top_given(t["given"], t["entropy"], t["mask"], t["weights"])
        taught = teaches(n["given"], n["entropy"], n["mask"], 0.2)
        t |= {"weights": weights, "mask": weights != 0, "logp": t["logp"].clone().requires_grad_()}
        t["advantages"] = recipe.single["credit.baseline"](t)
        coefficients = recipe.single["objective.aggregation"](t)
        t["ratio"] = recipe.single["objective.ratio"](t)
        total = inputs.scalar(-recipe.single["objective.trust_region"](t), coefficients)
        total = total + inputs.scalar(recipe.chain["objective.terms"][0](t), coefficients)
        total.backward()
        assert float(total.detach()) == pytest.approx(loss(n, taught), rel=1e-9, abs=1e-12)
        if kind == "huge_ratios":
            continue  # a finite difference of e^20 says nothing
        row, place = (int(x[0]) for x in np.nonzero(taught))
        up, down = ({**n, "logp": n["logp"].copy()} for _ in range(2))
        up["logp"][row, place] += 1e-6
        down["logp"][row, place] -= 1e-6
        slope = (loss(up, taught) - loss(down, taught)) / 2e-6
        assert float(t["logp"].grad[row, place]) == pytest.approx(slope, rel=2e-4, abs=1e-7)


@pytest.mark.reduction("igpo")
@given(seed=st.integers(0, 50))
def test_keeping_all_given_tokens_or_having_none_is_no_filter(seed: int) -> None:
    t = inputs.tensors(inputs.table("random", seed))
    plain = torch.where(t["mask"], t["weights"].unsqueeze(-1), 0.0)
    assert torch.equal(top_given(t["given"], t["entropy"], t["mask"], t["weights"], share=1.0), plain)
    none = torch.zeros_like(t["given"])
    assert torch.equal(top_given(none, t["entropy"], t["mask"], t["weights"]), plain)


@pytest.mark.reduction("igpo")
def test_where_somebody_is_right_it_is_plain_sampling(run: Run) -> None:
    made, seen = roll(run, [[True, False, False, False]] * 3, [[True] * SIZE] * 3)
    plain = run.policy.rollout([run.prompt(i) for i in range(3)], SEEDS, SPEC)
    for name in plain.columns:
        assert torch.equal(made[name], plain[name]), name
    assert not made["given"].any() and seen["inpaint/failed_share"] == 0
