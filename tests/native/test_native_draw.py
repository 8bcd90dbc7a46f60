"""Draws by the compiled function are those that float64 makes of the same uniforms."""

from __future__ import annotations

import math

import pytest
import torch

from coterie.native import draw as native
from coterie.native import functions
from coterie.rollout.engines.sampling import draw, uniform
from coterie.rollouts import Sampling

pytestmark = pytest.mark.skipif(functions() is None, reason="nothing to compile with")

WIDTHS = [1, 7, 8, 16, 17, 511, 512, 513, 4096, 70_001]
"""A row is summed in stretches of 512."""
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def made(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)) * 3
    return logits.to(dtype), uniform(torch.arange(rows), 0)


@both_types
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_draws_of_any_widths(dtype, width, temperature):
    logits, uniforms = made(40, width, dtype)
    tokens, logp, entropy = native.draw(logits, temperature, uniforms, True)
    exact = (logits.double() / (temperature or 1.0)).log_softmax(-1)
    assert torch.allclose(logp.double(), exact.gather(-1, tokens[:, None])[:, 0], atol=1e-6)
    assert torch.allclose(entropy.double(), torch.distributions.Categorical(logits=exact).entropy(), atol=1e-5)
    if temperature == 0.0:
        assert torch.equal(tokens, logits.argmax(-1))
    else:  # the uniform lies in the token's own part of the line, but for rounding
        upto = exact.exp().cumsum(-1).gather(-1, tokens[:, None])[:, 0]
        assert bool((uniforms < upto + 1e-6).all()) and bool((uniforms > upto - logp.exp() - 1e-6).all())


@both_types
def test_draws_at_the_ends_of_the_line(dtype):
    logits = torch.full((4, 600), -math.inf, dtype=dtype)
    logits[:, 300], logits[:, 500] = 1.0, 2.0
    logits[:, 501:] = -300.0  # too unlikely to be drawn
    ends = torch.tensor([0.0, 5e-324, 1 - 2.0**-53, 0.5], dtype=torch.float64)
    assert native.draw(logits, 1.0, ends)[0].tolist() == [300, 300, 500, 500]


@both_types
def test_draws_of_rows_that_lie_apart(dtype, threads):
    logits, uniforms = made(90, 500, dtype)
    wide = torch.zeros(90, 3, 500, dtype=dtype)
    wide[:, 1] = logits
    threads(2)
    for apart in (wide[:, 1], logits.T.contiguous().T):
        for a, b in zip(native.draw(apart, 0.9, uniforms, True), native.draw(logits, 0.9, uniforms, True), strict=True):
            assert torch.equal(a, b)


@both_types
def test_draws_from_what_is_not_a_number(dtype):
    logits = torch.zeros(3, 40, dtype=dtype)
    logits[0, 3], logits[1, 39], logits[2] = math.nan, math.inf, -math.inf
    for temperature in (0.0, 1.0):
        tokens, logp, _ = native.draw(logits, temperature, torch.full((3,), 0.5))
        assert bool(logp.isnan().all()) and bool(((tokens >= 0) & (tokens < 40)).all())


def test_the_likeliest_of_equals_is_the_first():
    assert native.draw(torch.zeros(1, 300), 0.0, torch.zeros(1))[0].tolist() == [0]


def test_the_widest_rows():
    logits = torch.zeros(1, native.WIDEST)
    assert native.suits(logits) and not native.suits(torch.zeros(1, native.WIDEST + 1))
    tokens, logp, _ = native.draw(logits, 1.0, torch.tensor([0.75]))
    assert tokens.item() == native.WIDEST * 3 // 4 and logp.item() == pytest.approx(-math.log(native.WIDEST))


@both_types
def test_drawing_goes_there(dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(native, "draw", lambda logits, *_: asked.append(logits.dtype))
    logits, uniforms = made(3, 20, dtype)
    draw(logits, Sampling(), uniforms)
    draw(logits, Sampling(temperature=0.0), uniforms)
    draw(logits, Sampling(top_p=0.9), uniforms)
    draw(logits.double(), Sampling(), uniforms)
    assert asked == [dtype, dtype, torch.float32]  # what is left of a distribution is float32
