"""Attention of groups that share a prompt by compiled functions is what the plain path finds in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.native import attention as native
from coterie.native import functions
from coterie.policies import packing, two_part
from coterie.policies.attention import Rule
from coterie.policies.packing import pack_groups
from coterie.policies.two_part import Layout, attend_once, two_part_attention

pytestmark = pytest.mark.skipif(functions() is None, reason="nothing to compile with")

MIXED = [(5, [3, 1, 4]), (1, [2]), (19, [7, 7, 1, 12, 2, 5, 3, 3, 9, 1, 6]), (30, [1, 1, 1, 1]), (8, [17] * 9)]
"""Prompts' tokens, and those of each completion: ragged, a single row, a prompt of one token, more rows than a task."""
LONG = [(150, [70, 3, 131, 64]), (64, [65, 1]), (65, [2] * 17), (128, [1])]
"""Beyond one block of keys, and at its edges."""
EVEN = [(6, [5, 5, 5]), (6, [5, 5, 5])]
"""Slots and tokens are the same thing."""
HALF = torch.bfloat16
ROUNDING = 2**-8
"""The most that a bfloat16 is from what it stands for, to a part of it."""

both_types = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["float32", "bfloat16"])


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def packed(groups, ragged=False):
    """Rows in the order of their lengths' last digits, so that groups lie among one another."""
    rows = sorted(((g, n) for g, (_, some) in enumerate(groups) for n in some), key=lambda row: (row[1] % 10, row[0]))
    lengths = torch.tensor([n for _, n in rows])
    tokens = torch.arange(len(rows) * int(lengths.max())).view(len(rows), -1)
    mask = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
    return pack_groups(
        [[0] * size for size, _ in groups], torch.tensor([g for g, _ in rows]), tokens, mask, ragged=ragged
    )


def projected(layout, length, heads, kv, dim, seed=0, size=1.0, dtype=torch.float32):
    """Queries, keys and values as columns of one product, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(length, (heads + 2 * kv) * dim, generator=generator).to(dtype)
    q, k, v = (x.unflatten(1, (-1, dim)) for x in made.split([heads * dim, kv * dim, kv * dim], 1))
    return q * size if size != 1.0 else q, k, v, torch.randn(length, heads, dim, generator=generator).to(dtype)


class Found(NamedTuple):
    out: torch.Tensor
    log_sum: torch.Tensor
    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor


def found(q, k, v, grad, layout, rule):
    out, log_sum = attend_once(q, k, v, layout, rule)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    again = two_part_attention(*inputs, layout, rule)
    torch.testing.assert_close(again.detach(), out, rtol=0, atol=0, equal_nan=True)
    return Found(out, log_sum, *torch.autograd.grad(again, inputs, grad))


def check(q, k, v, grad, layout, rule, tolerance=1e-5):
    """By the functions, against float64, which they do not take. In bfloat16 each number is rounded once, and gradients
    are those at what was found, as it is kept."""
    assert native.suits(q, k, v, layout, rule)
    wide = [x.double() for x in (q, k, v, grad)]
    assert not native.suits(*wide[:3], layout, rule)
    got, want = found(q, k, v, grad, layout, rule), found(*wide, layout, rule)
    if q.dtype == HALF:
        inputs = [x.requires_grad_() for x in wide[:3]]
        kept = two_part_attention(*inputs, layout, rule, two_part.Attended(got.out.double(), want.log_sum))
        want = Found(*want[:2], *torch.autograd.grad(kept, inputs, wide[3]))
    for name, mine, its in zip(Found._fields, got, want, strict=True):
        assert mine.dtype == (torch.float32 if name == "log_sum" else q.dtype)
        size, each = max(1.0, float(its.abs().max())), ROUNDING if mine.dtype == HALF else 0.0
        torch.testing.assert_close(
            mine.double(), its, rtol=each, atol=tolerance * size, msg=lambda m, n=name: f"{n}: {m}"
        )
    return got


def compare(groups, heads, kv, dim, window=None, seed=0, ragged=False, dtype=torch.float32, **settings):
    one = packed(groups, ragged)
    length = one.ids.shape[1]
    rule = Rule(dim**-0.5, window)
    return check(*projected(one.layout, length, heads, kv, dim, seed, dtype=dtype), one.layout, rule, **settings)


@both_types
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 128])
def test_heads_of_all_widths(dim, heads, kv, dtype):
    compare(MIXED[:3], heads, kv, dim, dtype=dtype)


@both_types
@pytest.mark.parametrize("window", [None, 1, 3, 17, 200])
@pytest.mark.parametrize("groups", [MIXED, LONG, EVEN], ids=["mixed", "long", "even"])
def test_windows(groups, window, dtype):
    compare(groups, 4, 2, 16, window, dtype=dtype)


@both_types
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("groups", [MIXED, EVEN], ids=["mixed", "even"])
def test_tokens_in_another_order(groups, window, dtype):
    """As those of generation are: by time."""
    one = packed(groups)
    order = torch.randperm(one.ids.shape[1], generator=torch.Generator().manual_seed(4))
    other = one.ordered(order)
    rule = Rule(0.3, window)
    q, k, v, grad = projected(one.layout, len(order), 4, 2, 32, dtype=dtype)
    before = check(q, k, v, grad, one.layout, rule)
    after = check(q[order], k[order], v[order], grad[order], other.layout, rule)
    assert (one.layout.token is None) == (groups is EVEN) and other.layout.token is not None
    for mine, its in zip(after, before, strict=True):
        assert torch.equal(mine, its[order])


@both_types
def test_scores_far_apart(dtype):
    """Weights of which one is nearly all: as exact as scores of float32 are."""
    one = packed(MIXED)
    q, k, v, grad = projected(one.layout, one.ids.shape[1], 4, 2, 16, size=40.0, dtype=dtype)
    got = check(q, k, v, grad, one.layout, Rule(1.0), tolerance=3e-4)
    assert float(got.log_sum.abs().max()) > 300


@settings(max_examples=16)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 70), st.lists(st.integers(1, 24), min_size=1, max_size=11)), min_size=1, max_size=4
    ),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (6, 2), (5, 1)]),
    dim=st.sampled_from([16, 48]),
    window=st.sampled_from([None, 1, 2, 9, 64]),
    dtype=st.sampled_from([torch.float32, HALF]),
)
def test_groups_of_any_shape(groups, heads, dim, window, dtype):
    one = packed(groups)
    if one.layout.again is None:
        compare(groups, *heads, dim, window, dtype=dtype)
    compare(groups, *heads, dim, window, ragged=True, dtype=dtype)


@both_types
@pytest.mark.parametrize("window", [None, 9])
def test_groups_of_one_bundle_are_computed_a_few_at_a_time(monkeypatch, window, dtype):
    one = packed([*MIXED[:4], (64, [65, 1])], ragged=True)
    assert len(one.layout.bundles) == 1
    inputs = projected(one.layout, one.ids.shape[1], 4, 2, 16, dtype=dtype)
    want = check(*inputs, one.layout, Rule(0.25, window))
    for most in (1, 100_000):
        monkeypatch.setattr(native, "_MOST", most)
        assert all(map(torch.equal, found(*inputs, one.layout, Rule(0.25, window)), want))


@both_types
@pytest.mark.parametrize("window", [None, 4])
def test_threads_change_no_bit(threads, window, dtype):
    one = packed(MIXED + LONG[:1])
    inputs = projected(one.layout, one.ids.shape[1], 4, 2, 16, dtype=dtype)
    threads(1)
    want = found(*inputs, one.layout, Rule(0.25, window))
    threads(2)
    assert all(map(torch.equal, found(*inputs, one.layout, Rule(0.25, window)), want))


@both_types
def test_what_is_known_is_not_computed_again_and_its_gradient_is_the_same(monkeypatch, dtype):
    one = packed(MIXED)
    q, k, v, grad = projected(one.layout, one.ids.shape[1], 4, 2, 16, dtype=dtype)
    rule = Rule(0.25)
    want = found(q, k, v, grad, one.layout, rule)
    known = attend_once(q, k, v, one.layout, rule)
    wider = two_part.Attended(torch.cat([known.out] * 2, -1)[..., :16], torch.stack([known.log_sum] * 2, -1)[..., 0])
    monkeypatch.setattr(native, "attend", None)
    for one_known in (known, wider):
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = two_part_attention(*inputs, one.layout, rule, one_known)
        assert torch.equal(out, want.out)
        assert all(map(torch.equal, torch.autograd.grad(out, inputs, grad), want[2:]))


@both_types
def test_a_gradient_without_memory_of_its_own(dtype):
    one = packed(MIXED)
    made = projected(one.layout, one.ids.shape[1], 4, 2, 16, dtype=dtype)[:3]
    inputs = [x.detach().requires_grad_() for x in made]
    assert native.suits(*inputs, one.layout, Rule(0.25))
    got = torch.autograd.grad(two_part_attention(*inputs, one.layout, Rule(0.25)).sum(), inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    want = torch.autograd.grad(two_part_attention(*wide, one.layout, Rule(0.25)).sum(), wide)
    for mine, its in zip(got, want, strict=True):
        part = 1e-5 if dtype != HALF else 2 * ROUNDING  # also of what was found
        torch.testing.assert_close(mine.double(), its, rtol=0, atol=part * float(its.abs().max()))


def owners(groups):
    """Of each token of the row: group, completion (0 in the prompt) and position, from its place in attention."""
    layout, length = packed(groups).layout, packed(groups).ids.shape[1]
    out = {}
    slot = range(length) if layout.slot is None else layout.slot.tolist()
    for token, place in enumerate(slot):
        for number, b in enumerate(layout.bundles):
            if b.start <= place < b.middle:
                group, position = divmod(place - b.start, b.prefix)
                out[token] = (number, group, 0), position
            elif b.middle <= place < b.end:
                row, time = divmod(place - b.middle, b.length)
                out[token] = (number, row // b.rows, 1 + row % b.rows), time + int(b.sizes[row // b.rows])
    return out


@both_types
@pytest.mark.parametrize("window", [None, 3])
def test_nobody_sees_more_than_the_rule_says(window, dtype):
    """A key and a value are changed: who may not see them finds the same bits, everybody else something else; and what
    is no number does not reach other completions."""
    groups = MIXED[:3]
    one, owner = packed(groups), owners(groups)
    q, k, v, grad = projected(one.layout, one.ids.shape[1], 2, 1, 16, dtype=dtype)
    rule = Rule(0.25, window)
    want = found(q, k, v, grad, one.layout, rule)
    for token, (whose, position) in owner.items():
        if token % 3:
            continue
        keys, values = k.clone(), v.clone()
        keys[token] += 0.5
        values[token] *= -3
        out = attend_once(q, keys, values, one.layout, rule).out
        changed = {i for i in owner if not torch.equal(out[i], want.out[i])}
        sees = {
            i
            for i, (other, at) in owner.items()
            if other[:2] == whose[:2] and whose[2] in (0, other[2]) and 0 <= at - position < (window or 1000)
        }
        assert changed == sees
        values[token] = float("nan")
        lost = attend_once(q, k, values, one.layout, rule).out.isnan().flatten(1).any(1).nonzero().flatten().tolist()
        assert sees <= set(lost)
        assert all(owner[i][0][:2] == whose[:2] and whose[2] in (0, owner[i][0][2]) for i in lost)


@both_types
def test_numbers_that_are_none_are_seen(dtype):
    one = packed(MIXED)
    for part in range(3):
        inputs = list(projected(one.layout, one.ids.shape[1], 4, 2, 16, dtype=dtype))
        inputs[part] = inputs[part].clone()
        inputs[part][0, 0, 3] = float("nan")  # of a prompt's first token: all of its group see it
        got = found(*inputs, one.layout, Rule(0.25))
        assert got.out[0].isnan().any()
        assert any(x.isnan().any() for x in got[2:])


def test_trees_and_groups_that_are_cut_are_computed_as_ever(monkeypatch):
    tokens = torch.tensor([[7, 8, 9, 3, 4, 4], [7, 8, 5, 4, 9, 9], [7, 8, 5, 6, 4, 9], [3, 3, 3, 3, 4, 5]])
    branch = torch.tensor([0, 2, 3, 0])
    tree = pack_groups([[1, 2, 3]], torch.zeros(4, dtype=torch.int64), tokens, tokens > 0, branch)
    monkeypatch.setattr(packing, "_BUNDLES", 2**40)
    cut = packed([(9, [1, 1, 1, 30])])
    for one in (tree, cut):
        assert one.layout.again is not None
        q, k, v, grad = projected(one.layout, one.ids.shape[1], 4, 2, 16)
        assert not native.suits(q, k, v, one.layout, Rule(0.25))
        got = found(q, k, v, grad, one.layout, Rule(0.25))
        wide = found(*(x.double() for x in (q, k, v, grad)), one.layout, Rule(0.25))
        for mine, its in zip(got, wide, strict=True):
            torch.testing.assert_close(mine.double(), its, rtol=0, atol=1e-5)


def test_a_soft_cap_is_computed_as_ever():
    one = packed(MIXED)
    q, k, v, grad = projected(one.layout, one.ids.shape[1], 4, 2, 16)
    rule = Rule(0.25, None, 2.0)
    assert not native.suits(q, k, v, one.layout, rule)
    got = found(q, k, v, grad, one.layout, rule)
    want = found(*(x.double() for x in (q, k, v, grad)), one.layout, rule)
    for mine, its in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=0, atol=1e-5 * max(1.0, float(its.abs().max())))


@both_types
def test_tokens_and_heads_may_lie_anyhow(dtype):
    """As transformers' layers have them: heads before tokens. Gradient checkpointing brings such."""
    one = packed(MIXED)
    straight = projected(one.layout, one.ids.shape[1], 4, 2, 16, dtype=dtype)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in straight]
    apart = [torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2] for x in straight]
    want = found(*straight, one.layout, Rule(0.25, 5))
    for other in (heads_first, apart):
        assert native.suits(*other[:3], one.layout, Rule(0.25, 5))
        for mine, its in zip(found(*other, one.layout, Rule(0.25, 5)), want, strict=True):
            assert torch.equal(mine, its)


def test_only_what_it_computes_suits():
    layout, rule = Layout(packed(EVEN).layout.bundles), Rule(0.25)
    q, k, v, _ = projected(layout, 42, 4, 2, 32)
    for some in ([q, k, v], [x.bfloat16() for x in (q, k, v)]):
        assert native.suits(*some, layout, rule)
    others = {
        "float64": [x.double() for x in (q, k, v)],
        "half": [x.half() for x in (q, k, v)],
        "others": [q, k.bfloat16(), v.bfloat16()],
        "elsewhere": [x.to("meta") for x in (q, k, v)],
        "narrow": [x[..., :24].contiguous() for x in (q, k, v)],
        "wide": [torch.cat([x] * 5, -1) for x in (q, k, v)],
        "other values": [q, k, v[..., :16].contiguous()],
        "narrow keys": [q, k[..., :16], v[..., :16]],
    }
    for name, inputs in others.items():
        assert not native.suits(*inputs, layout, rule), name


@both_types
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("groups", "window"), [(MIXED, None), (LONG, 40)])
def test_only_what_is_asked_is_answered(groups, window, share, dtype):
    """The others' queries get no gradient, and nothing of them gets into anybody else's, whatever they are."""
    layout, rule = (one := packed(groups)).layout, Rule(0.25, window)
    length = one.ids.shape[1]
    q, k, v, grad = projected(layout, length, 4, 2, 16, dtype=dtype)
    asked = torch.rand(length, generator=torch.Generator().manual_seed(1)) < share
    grad[~asked] = 0
    want = found(q, k, v, grad, layout, rule)
    q[~asked] = torch.nan
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = two_part_attention(*inputs, layout, rule._replace(asked=asked))
    slopes = torch.autograd.grad(out, inputs, grad)
    torch.testing.assert_close(out[asked], want.out[asked], rtol=0, atol=0)
    for mine, its in zip(slopes, want[2:], strict=True):
        torch.testing.assert_close(mine, its, rtol=ROUNDING if dtype == HALF else 0, atol=1e-5)
    assert not slopes[0][~asked].any()
