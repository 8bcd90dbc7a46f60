"""What the compiled function cuts is what sorting each row in float64 says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.native import cut as native
from coterie.native import functions
from coterie.rollout.engines.sampling import draw, truncate, uniform
from coterie.rollouts import Sampling

pytestmark = pytest.mark.skipif(functions() is None, reason="nothing to compile with")

WIDTHS = [1, 7, 16, 17, 600, 5000]


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def kept(row: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """The places that stay, in Python's floats."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    if 0 < top_k < len(row):
        order = [i for i in order if row[i] >= row[order[top_k - 1]]]
    if top_p < 1.0:
        weights = [math.exp(row[i] - row[order[0]]) for i in order]
        share = top_p * math.fsum(weights)
        order = [i for n, i in enumerate(order) if math.fsum(weights[:n]) < share]
    if min_p > 0.0:
        order = [i for i in order if row[i] >= max(row) + math.log(min_p)]
    return set(order)


def left(logits: torch.Tensor, *cuts) -> list[set[int]]:
    return [set((~row).nonzero().flatten().tolist()) for row in native.cut(logits, *cuts)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("cuts", [(5, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1), (40, 0.9, 0.0), (300, 0.95, 0.02)])
def test_cuts_of_any_widths(width, cuts, threads):
    logits = torch.randn(9, width, generator=torch.Generator().manual_seed(width)) * 2
    want = [kept(row, *cuts) for row in logits.tolist()]
    for count in (1, 2):
        threads(count)
        assert left(logits, *cuts) == want
    apart = torch.stack([logits, logits], 1)[:, 0]
    assert left(apart, *cuts) == want


@pytest.mark.parametrize("scale", [0.0, 1e-5, 0.02, 60.0])
def test_cuts_of_flat_and_of_steep_rows(scale):
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0)) * scale
    for cuts in ((30, 1.0, 0.0), (0, 0.7, 0.0), (200, 0.9, 0.5)):
        assert left(logits, *cuts) == [kept(row, *cuts) for row in logits.tolist()]


@given(
    st.lists(st.sampled_from([-math.inf, -90.0, -30.0, -1.0, 0.0, 0.03, 1.0, 64.0]), min_size=1, max_size=40),
    st.integers(0, 12),
    st.sampled_from([1e-9, 0.3, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]),
)
def test_cuts_among_equals(values, top_k, top_p, min_p):
    row = [0.5, *values]
    logits = torch.tensor([row])
    assert left(logits, top_k, top_p, min_p) == [kept(logits[0].tolist(), top_k, top_p, min_p)]


def test_what_is_not_a_number_is_told():
    logits = torch.zeros(3, 50)
    logits[0, 4], logits[1, 0], logits[2, :] = math.nan, math.inf, math.nan
    _, logp, _ = draw(logits, Sampling(top_k=3, top_p=0.5, min_p=0.1), torch.full((3,), 0.5))
    assert bool(logp.isnan().all())


def test_draws_from_what_is_left():
    logits = torch.randn(4000, 30, generator=torch.Generator().manual_seed(1))[:1].expand(4000, -1)
    spec = Sampling(temperature=0.8, top_p=0.7)
    tokens, logp, entropy = draw(logits, spec, uniform(torch.arange(4000), 0), entropy=True)
    exact = truncate(logits[:1].double(), spec).log_softmax(-1)[0]
    assert torch.allclose(logp.double(), exact[tokens], atol=1e-6)
    assert entropy[0].item() == pytest.approx(torch.distributions.Categorical(logits=exact).entropy().item(), abs=1e-5)
    expected = exact.exp() * 4000
    seen = tokens.bincount(minlength=30)
    some = expected > 0
    assert not bool(seen[~some].any())
    assert float(((seen - expected)[some] ** 2 / expected[some]).sum()) < 3 * int(some.sum()) + 10
