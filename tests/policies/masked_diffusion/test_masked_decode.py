"""Decoding: schedules against plain loops, samples against an enumerated distribution, and what always holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import masked_diffusion as oracle

from coterie.errors import RecipeError
from coterie.policies.masked_diffusion.decode import before_end, decode
from coterie.policies.masked_diffusion.schedule import plan
from coterie.rollouts import Sampling
from coterie.sections import Unmask

PLACES, TOKENS = 3, 3
MASK = TOKENS
MODEL = oracle.random_model(PLACES, TOKENS)
ORDERS = ("peak", "margin", "entropy", "random")


def forward(rows: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
    found = [MODEL[tuple(None if x == MASK else x for x in c)] for c in canvas.tolist()]
    impossible = np.full((len(found), canvas.shape[1], 1), -np.inf)
    return torch.from_numpy(np.concatenate([np.stack(found), impossible], -1))


def fill(count: int = 1, eos: int | None = None, start: int = 0, given: Any = None, **settings: Any) -> Any:
    canvas = torch.full((count, PLACES), MASK) if given is None else torch.as_tensor(given)
    seeds = torch.arange(start, start + len(canvas))
    return decode(forward, canvas, seeds, Sampling(), Unmask(**settings), MASK, eos)


def counts(width: int, **settings: Any) -> list[list[int]]:
    """Places each step unmasks, block by block, from the first to the last."""
    out: list[list[int]] = []
    left = 0
    for step in plan(width, Unmask(**settings)):
        size = step.stop - step.start
        if step.number == 0:
            out.append([])
            left = size
        out[-1].append(int(step.count(torch.tensor([size]), torch.tensor([left]))))
        left -= out[-1][-1]
    return out


class TestSchedule:
    @pytest.mark.oracle("cj-grpo")
    def test_ascending_steps_of_the_paper(self) -> None:
        assert counts(128, growth="ascending", steps=7) == [[1, 2, 4, 8, 16, 32, 65]]
        blocks = counts(16, growth="ascending", steps=4, blocks=3)
        assert [sum(b) for b in blocks] == [3, 4, 9] and blocks[0] == [1, 2]

    @given(power=st.integers(1, 7), extra=st.integers(0, 5), data=st.data())
    def test_ascending_against_the_oracle(self, power: int, extra: int, data: st.DataObject) -> None:
        blocks = data.draw(st.integers(1, power))
        width = 2**power + extra
        assert counts(width, growth="ascending", steps=power, blocks=blocks) == oracle.ascending(width, power, blocks)

    @given(data=st.data())
    def test_uniform_steps_share_each_block(self, data: st.DataObject) -> None:
        width = data.draw(st.integers(1, 40))
        steps = data.draw(st.integers(1, width))
        blocks = data.draw(st.integers(1, steps))
        found = counts(width, steps=steps, blocks=blocks)
        assert sum(map(len, found)) == steps and sum(map(sum, found)) == width
        for own in found:
            assert own == oracle.uniform_counts(sum(own), len(own))
            assert min(own) >= (1 if steps <= width // blocks else 0)

    @pytest.mark.oracle("cj-grpo")
    def test_eos_is_held_back_linearly(self) -> None:
        uniform = [s.gamma for s in plan(32, Unmask(eos_from=0.01))]
        assert 0.9 * uniform[0] == pytest.approx(0.009) and uniform[-1] == 1.0
        np.testing.assert_allclose(uniform, [0.01 + 0.99 * i / 31 for i in range(32)])
        rising = [s.gamma for s in plan(128, Unmask(eos_from=0.01, growth="ascending", steps=7))]
        np.testing.assert_allclose(rising, [0.01 + 0.99 * (2 ** (i + 1) - 1) / 2**7 for i in range(7)])
        assert {s.gamma for s in plan(8, Unmask())} == {1.0}

    @pytest.mark.parametrize("settings", [{"steps": 9}, {"steps": 2, "blocks": 3}, {"growth": "ascending", "steps": 4}])
    def test_what_cannot_be_filled_is_refused(self, settings: dict[str, Any]) -> None:
        with pytest.raises(RecipeError, match="steps"):
            plan(8, Unmask(**settings))

    def test_threshold_and_steps_are_one_choice(self) -> None:
        with pytest.raises(ValueError, match=r"unmask\.threshold"):
            Unmask(threshold=0.5, steps=2)


class TestSamples:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_canvases_come_as_often_as_they_are_probable(self, order: str, steps: int) -> None:
        draws = 20_000
        made = Counter(map(tuple, fill(draws, steps=steps, order=order).canvas.tolist()))
        want = oracle.distribution(MODEL, PLACES, oracle.uniform_counts(PLACES, steps), order)
        assert sum(want.values()) == pytest.approx(1.0)
        chi2 = sum((made[c] - draws * p) ** 2 / (draws * p) for c, p in want.items())
        assert chi2 < 55  # 26 degrees of freedom: p = 0.0008

    def test_choosing_places_by_the_drawn_token_is_another_distribution(self) -> None:
        """What is drawn likely is kept first, so there the log-probs are not those of the canvas as a whole."""
        made = Counter(map(tuple, fill(20_000, steps=3, order="confidence").canvas.tolist()))
        want = oracle.distribution(MODEL, PLACES, [1, 1, 1], "peak")
        assert sum((made[c] - 20_000 * p) ** 2 / (20_000 * p) for c, p in want.items()) > 300

    @pytest.mark.parametrize("order", [*ORDERS, "confidence"])
    def test_log_probs_are_those_of_the_canvas_before_the_step(self, order: str) -> None:
        made = fill(200, steps=2, order=order)
        for row in range(200):
            tokens, when = made.canvas[row].tolist(), made.unmasked[row].tolist()
            for place in range(PLACES):
                masked = [i for i in range(PLACES) if when[i] >= when[place]]
                want = oracle.log_prob(MODEL, tokens, masked, place)
                assert float(made.logp[row, place]) == pytest.approx(want, abs=1e-12)


class TestAlways:
    @pytest.mark.parametrize("order", [*ORDERS, "confidence"])
    def test_a_row_depends_on_its_seed_alone(self, order: str) -> None:
        whole, part = fill(50, order=order, steps=2), fill(7, start=13, order=order, steps=2)
        assert whole.actions is None
        for a, b in zip(whole[:4], part[:4], strict=True):
            assert torch.equal(a[13:20], b)

    def test_blocks_are_filled_from_left_to_right(self) -> None:
        when = fill(100, blocks=3).unmasked
        assert (when == torch.arange(PLACES)).all()

    def test_what_is_given_stays(self) -> None:
        given = torch.full((100, PLACES), MASK)
        given[:, 1] = 2
        made = fill(given=given, order="entropy")
        assert (made.canvas[:, 1] == 2).all() and (made.unmasked[:, 1] == -1).all() and (made.logp[:, 1] == 0).all()
        assert (made.unmasked[:, [0, 2]].sort(-1).values == torch.tensor([0, 1])).all()

    def test_everything_given_takes_no_pass(self) -> None:
        made = fill(given=torch.zeros(2, PLACES, dtype=torch.int64))
        assert (made.unmasked == -1).all() and (made.logp == 0).all()

    def test_a_row_ends_where_nothing_masked_is_before_an_eos(self) -> None:
        made = fill(400, eos=0, order="random")
        for canvas, when in zip(made.canvas.tolist(), made.unmasked.tolist(), strict=True):
            end = canvas.index(0) if 0 in canvas else PLACES
            assert MASK not in canvas[: end + 1]
            last = max(when[: end + 1])
            assert all(w <= last for w in when)  # nothing was decided after that
            assert all((w == -1) == (c == MASK) for w, c in zip(when, canvas, strict=True))
        assert (made.canvas == MASK).any()
        assert not (fill(400, eos=0, order="random", after_end=True).canvas == MASK).any()

    def test_places_up_to_the_first_end(self) -> None:
        canvas = torch.tensor([[1, 0, 0], [1, 2, 1], [0, 1, 2]])
        assert before_end(canvas, 0).tolist() == [[True, True, False], [True] * 3, [True, False, False]]
        assert before_end(canvas, None).all()

    def test_eos_comes_later_when_it_is_held_back(self) -> None:
        plain, held = (fill(2000, eos=0, order="confidence", after_end=True, eos_from=g) for g in (1.0, 0.0))

        def mean_pass(made: Any) -> float:
            return float(made.unmasked[made.canvas == 0].double().mean())

        assert mean_pass(held) > mean_pass(plain) + 0.3

    def test_a_threshold_takes_all_that_reach_it_and_else_the_best(self) -> None:
        assert (fill(20, threshold=1e-9, order="peak").unmasked == 0).all()
        assert (fill(20, threshold=1.0, order="peak").unmasked.sort(-1).values == torch.arange(PLACES)).all()
        logits = forward(torch.zeros(1), torch.full((1, PLACES), MASK))[0]
        peaks = logits.softmax(-1).amax(-1)
        middle = float(peaks.sort().values[1:].mean())
        first = fill(1, threshold=middle, order="peak").unmasked[0] == 0
        assert torch.equal(first, peaks >= middle)

    def test_greedy_takes_the_likeliest(self) -> None:
        made = decode(
            forward, torch.full((1, PLACES), MASK), torch.zeros(1, dtype=torch.int64), Sampling(0.0), Unmask(steps=1),
            MASK, None,
        )  # fmt: skip
        assert torch.equal(made.canvas, forward(torch.zeros(1), torch.full((1, PLACES), MASK)).argmax(-1))
