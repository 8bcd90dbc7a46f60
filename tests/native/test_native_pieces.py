"""Norms, heads and gates by compiled functions are what float64 says they are, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from coterie.native import functions
from coterie.native import pieces as native
from coterie.policies.gated_mlp import gated_mlp
from coterie.policies.llama import Norm, rotate

pytestmark = pytest.mark.skipif(functions() is None, reason="nothing to compile with")

WIDTHS = [8, 16, 64, 200, 256]
ROWS = [0, 1, 7, 127, 128, 129, 700]
"""Sums of weights' gradients are made in pieces of 128 rows."""
EPS = 1e-5
HALF = torch.bfloat16
ROUNDING = 2**-8
"""The most that a bfloat16 is from what it stands for, to a part of it."""

both_types = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["float32", "bfloat16"])


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def columns(x):
    """The same numbers as columns of something wider, at an odd place."""
    return torch.cat([x.new_full((len(x), 3), 7.0), x, x.new_full((len(x), 2), 9.0)], 1)[:, 3:-2]


def close(got, want, dtype=torch.float32, between=0, tolerance=1e-5):
    """To this part of what is largest there; in bfloat16 each rounded once, and what it was made of so many times."""
    assert got.dtype == dtype and got.shape == want.shape
    size = float(want.abs().max()) if want.numel() else 1.0
    each, all_of_it = (tolerance, tolerance) if dtype != HALF else (ROUNDING, tolerance + between * ROUNDING)
    torch.testing.assert_close(got.double(), want, rtol=each, atol=all_of_it * size)


def alike(got, want, **tolerance):
    """Numbers, and what is none, in the same places."""
    assert torch.equal(got.isnan(), want.isnan()) and bool(want.isnan().any())
    torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


def normed(x, weight, eps=EPS):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x, dim, weight, cos, sin, eps=EPS):
    """Heads of x [n,h*dim], [n,h,dim]; the sine is signed."""
    x = x.unflatten(1, (-1, dim))
    x = x if weight is None else normed(x, weight, eps)
    return x * cos.unsqueeze(1) + x.roll(dim // 2, -1) * sin.unsqueeze(1)


def gradients(function, grad, *inputs):
    """In float64, by autograd."""
    wide = [x.double().requires_grad_() for x in inputs]
    out = function(*wide)
    return out.detach(), *torch.autograd.grad(out, wide, grad.double())


@both_types
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_norm(rows, width, dtype):
    x, weight = columns(3 * normal(rows, width, dtype=dtype)), 1 + normal(width, seed=1, dtype=dtype)
    grad = columns(normal(rows, width, seed=2, dtype=dtype))
    want, dx, dweight = gradients(normed, grad, x, weight)
    assert native.suits(x, weight)
    y, scale, _ = native.norm(x, weight, EPS)
    close(y, want, dtype)
    close(scale, (x.double().square().mean(-1) + EPS).rsqrt())
    back = native.norm_backward(x, weight, scale, grad, True)
    close(back[0], dx, dtype)
    close(back[1], dweight, dtype)
    alone = native.norm_backward(x, weight, scale, grad, False)
    close(alone[0], dx, dtype)
    assert alone[1] is None


@both_types
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_a_sum_and_its_norm(rows, width, dtype):
    """Together they are the one and then the other, forward and backward."""
    x, y = columns(normal(rows, width, dtype=dtype)), normal(rows, width, seed=3, dtype=dtype)
    weight = 1 + normal(width, seed=1, dtype=dtype)
    grads = [columns(normal(rows, width, seed=i, dtype=dtype)) for i in (2, 4)]
    made, scale, total = native.norm(x, weight, EPS, y)
    assert torch.equal(total, x + y)
    for mine, its in zip((made, scale), native.norm(total, weight, EPS)[:2], strict=True):
        assert torch.equal(mine, its)
    inputs = [z.detach().requires_grad_() for z in (x, y, weight)]
    outs = Norm(inputs[2], EPS).added(*inputs[:2])
    assert torch.equal(outs[0], total) and torch.equal(outs[1], made)
    got = torch.autograd.grad(outs, inputs, grads)
    wide = [z.double().requires_grad_() for z in (total, weight)]
    want = torch.autograd.grad((wide[0], normed(*wide)), wide, [g.double() for g in grads])
    assert torch.equal(got[0], got[1])
    close(got[0], want[0], dtype)
    close(got[2], want[1], dtype)


def angles(rows, dim, dtype=torch.float32):
    angle = normal(rows, dim // 2, seed=5) * 3
    return torch.cat([angle.cos()] * 2, -1).to(dtype), torch.cat([-angle.sin(), angle.sin()], -1).to(dtype)


@both_types
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_head(rows, dim, weighted, dtype):
    """What is normed, and the gradient that is turned back, are rounded too."""
    heads = 3 if rows < 700 else 1
    x, weight = columns(2 * normal(rows, heads * dim, dtype=dtype)), 1 + normal(dim, seed=1, dtype=dtype)
    grad = normal(rows, heads, dim, seed=2, dtype=dtype)
    cos, sin = angles(rows, dim, dtype)
    signs = cos.double(), sin.double()
    if weighted:
        want, dx, dweight = gradients(lambda x, w: turned(x, dim, w, *signs), grad, x, weight)
    else:
        want, dx = gradients(lambda x: turned(x, dim, None, *signs), grad, x)
    y, scale = native.head(x, dim, weight if weighted else None, EPS, cos, sin)
    close(y, want, dtype, between=int(weighted))
    assert (scale is not None) == weighted
    back = native.head_backward(x, weight if weighted else None, scale, cos, sin, grad, weighted)
    close(back[0], dx, dtype, between=int(weighted))
    if not weighted:
        assert back[1] is None
        return
    close(back[1], dweight, dtype, between=1)
    alone = native.head_backward(x, weight, scale, cos, sin, grad, False)
    close(alone[0], dx, dtype, between=1)
    assert alone[1] is None


def gated(gates, ups):
    return silu(gates) * ups


@both_types
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_gate(rows, width, dtype):
    gates, ups = columns(4 * normal(rows, width, dtype=dtype)), columns(normal(rows, width, seed=1, dtype=dtype))
    grad = normal(rows, width, dtype=dtype)
    want, dgates, dups = gradients(gated, grad, gates, ups)
    before = gates.clone(), ups.clone()
    close(native.gate(gates, ups), want, dtype)
    back = native.gate_backward(gates, ups, columns(grad))
    for got, its in zip(back, (want, dgates, dups), strict=True):
        close(got, its, dtype)
    assert torch.equal(gates, before[0]) and torch.equal(ups, before[1])


@both_types
def test_gates_of_any_size(dtype):
    """Each to a part of its own size, down to where a float32 has none."""
    some = [0.0, 1e-40, 1e-30, 1e-6, 0.1, 1.0, 5.0, 15.0, 80.0, 86.9, 87.1, 88.0, 89.0, 200.0, 1e4, 1e9, 3e38]
    gates = torch.tensor([[*some, *(-x for x in some)]], dtype=dtype).repeat(1, 4)
    ups = torch.tensor([[1.0] * 34 + [-1.0] * 34 + [0.0] * 34 + [1e-6] * 34], dtype=dtype)
    want, dgates, dups = gradients(gated, torch.ones_like(gates), gates, ups)
    back = native.gate_backward(gates, ups, torch.ones_like(gates))
    for got, its in zip((native.gate(gates, ups), *back), (want, want, dgates, dups), strict=True):
        torch.testing.assert_close(got.double(), its, rtol=2e-6 if dtype != HALF else ROUNDING, atol=2e-35)


@pytest.fixture(scope="module")
def pairs():
    """Every bfloat16 there is, with another: as near as makes a tie where they are added, and any."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(HALF)
    near = torch.cat([every.float() * 2.0**-k * sign for k in (1, 7, 8, 9) for sign in (-1, 1)]).to(HALF)
    any_of_them = every[torch.randperm(2**16, generator=torch.Generator().manual_seed(3))]
    return every.repeat(9).view(-1, 64), torch.cat([near, any_of_them]).view(-1, 64)


def rounded(got, want):
    """As torch rounds: to the nearest and to even, too much to infinity; and what is no number stays that."""
    assert got.dtype == HALF and want.dtype == torch.float32
    bits, its = got.view(torch.int16), want.to(HALF).view(torch.int16)
    wrong = (bits != its) & ~(got.isnan() & want.isnan())
    assert not wrong.any(), (want[wrong][:5], got[wrong][:5])


def test_one_bfloat16_is_rounded_to_the_nearest_and_to_even(pairs):
    """Sums of two: turned by a cosine and a sine of one."""
    a, b = pairs
    total = a.float() + b.float()
    tie = (total.view(torch.int32) & 0xFFFF) == 0x8000
    small = (total.abs() < 2.0**-126) & (total != 0)
    for some in (tie, small, total.isnan(), total.isinf()):
        assert int(some.sum()) > 100
    one = torch.ones(len(a), 128, dtype=HALF)
    y, _ = native.head(torch.cat([a, b], 1), 128, None, EPS, one, one)
    rounded(y[:, 0, :64], total)
    rounded(y[:, 0, 64:], total)
    back, _ = native.head_backward(torch.cat([a, b], 1), None, None, one, one, torch.cat([a, b], 1).unsqueeze(1), False)
    rounded(back[:, :64], a.float() - b.float())


def test_eight_at_once_are_rounded_to_the_nearest_and_to_even(pairs):
    """Products of two: of a gate so large that it is open."""
    _, ups = pairs
    gates = torch.linspace(32, 1e30, ups.numel()).view(ups.shape).to(HALF)
    gates[::2] = torch.linspace(32, 64, 64).to(HALF)
    product = gates.float() * ups.float()
    for some in ((product.view(torch.int32) & 0xFFFF) == 0x8000, product.isnan(), product.isinf()):
        assert int(some.sum()) > 100
    rounded(native.gate(gates, ups), product)


@both_types
def test_norms_of_any_size(dtype):
    """Nothing, less than a normal number, little, much; and so much that its square is none, which torch makes 0."""
    sizes = torch.tensor([0.0, 1e-41, 1e-30, 1e-10, 1e-3, 1e5, 1e17]).unsqueeze(1)
    x, weight = (sizes * normal(7, 64)).to(dtype), 1 + normal(64, seed=1, dtype=dtype)
    grad = normal(7, 64, seed=2, dtype=dtype)
    want, dx, _ = gradients(normed, grad, x, weight)
    y, scale, _ = native.norm(x, weight, EPS)
    got, dweight = native.norm_backward(x, weight, scale, grad, True)
    for row in range(7):
        close(got[row], dx[row], dtype)
        size, least, each = float(want[row].abs().max()), 1e-43, 1e-5
        if dtype == HALF:
            least, each = 2.0**-134, ROUNDING  # half of the smallest
        torch.testing.assert_close(y[row].double(), want[row], rtol=each, atol=1e-5 * size + least)
    assert dweight.isfinite().all()
    many = torch.full((1, 64), 1e25, dtype=dtype)
    assert torch.equal(native.norm(many, weight, EPS)[0], torch.zeros(1, 64, dtype=dtype))


@both_types
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_row_and_is_seen_there(bad, dtype):
    x, weight, grad = (normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(4, 16), (16,), (4, 16)]))
    weight += 1
    x[1, 3] = bad
    want = normed(x.float(), weight.float())
    y, scale, _ = native.norm(x, weight, EPS)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype != HALF else {"rtol": 2 * ROUNDING, "atol": 2 * ROUNDING}
    alike(y.float(), want, **near)
    dx, dweight = native.norm_backward(x, weight, scale, grad, True)
    assert dx[1].isnan().any() and dweight.isnan().any() and dx[[0, 2, 3]].isfinite().all()
    cos, sin = angles(4, 8, dtype)
    plain = normed(x.float().unflatten(1, (2, 8)), weight[:8].float())
    plain = rotate(plain, cos.float().unsqueeze(1), sin.float().unsqueeze(1))
    alike(native.head(x, 8, weight[:8], EPS, cos, sin)[0].float(), plain, **near)
    fine = normal(4, 16, dtype=dtype)
    _, scale, _ = native.norm(fine, weight, EPS)
    grad[2, 5] = bad
    dx, dweight = native.norm_backward(fine, weight, scale, grad, True)
    assert not dx[2].isfinite().any() and dx[[0, 1, 3]].isfinite().all()
    assert not dweight[5].isfinite() and int(dweight.isfinite().sum()) == 15


@both_types
@pytest.mark.parametrize("where", ["gates", "ups", "slope"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gates_that_are_no_numbers_are_those_of_torch(where, bad, dtype):
    one = {name: normal(2, 16, seed=i, dtype=dtype) for i, name in enumerate(("gates", "ups", "slope"))}
    one[where][1, 4] = bad
    gates, ups, slope = (x.float() for x in one.values())
    want = gated(gates, ups), torch.ops.aten.silu_backward(slope * ups, gates), slope * silu(gates)
    near = {"rtol": 1e-5 if dtype != HALF else ROUNDING, "atol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(native.gate(one["gates"], one["ups"]).float(), want[0], **near)
    got = native.gate_backward(one["gates"], one["ups"], one["slope"].clone())
    for mine, its in zip(got, want, strict=True):
        torch.testing.assert_close(mine.float(), its, **near)
    assert not all(bool(x.isfinite().all()) for x in got)


@both_types
@pytest.mark.parametrize("rows", [257, 700])
def test_threads_change_no_bit(threads, rows, dtype):
    width = 128
    x, weight = normal(rows, width, dtype=dtype), 1 + normal(width, seed=1, dtype=dtype)
    grad = normal(rows, width, seed=2, dtype=dtype)
    cos, sin = angles(rows, 32, dtype)

    def everything():
        y, scale, _ = native.norm(x, weight, EPS)
        heads, each = native.head(x, 32, weight[:32], EPS, cos, sin)
        back = native.norm_backward(x, weight, scale, grad, True)
        both = native.head_backward(x, weight[:32], each, cos, sin, grad.view(rows, 4, 32), True)
        return y, scale, heads, each, *back, *both, native.gate(x, grad), *native.gate_backward(x, grad, 1 + x)

    threads(1)
    want = everything()
    threads(2)
    assert all(map(torch.equal, everything(), want))


def test_only_what_it_computes_suits():
    fits = normal(4, 16)
    for one in (fits, fits.bfloat16()):
        assert native.suits(one, None, one[:, 8:], one[0])
    others = {
        "float64": fits.double(),
        "half": fits.half(),
        "other": fits.bfloat16(),
        "elsewhere": fits.to("meta"),
        "width": normal(4, 12),
        "columns first": normal(16, 8).T,
        "every other": normal(4, 32)[:, ::2],
    }
    for name, x in others.items():
        assert not native.suits(fits, x), name


@both_types
@pytest.mark.parametrize("trained", [True, False])
def test_a_norm_and_its_weight_get_the_gradients_of_float64(trained, dtype):
    """Also of a gradient that is no memory of its own."""
    x = normal(300, 24, dtype=dtype).requires_grad_()
    weight = (1 + normal(24, seed=1, dtype=dtype)).requires_grad_(trained)
    out = Norm(weight, EPS)(x)
    out.sum().backward()
    want, dx, dweight = gradients(normed, torch.ones(300, 24), x.detach(), weight.detach())
    close(out.detach(), want, dtype)
    close(x.grad, dx, dtype)
    if trained:
        close(weight.grad, dweight, dtype)
    else:
        assert weight.grad is None
    with torch.no_grad():
        assert torch.equal(Norm(weight, EPS)(x), out)


@both_types
@pytest.mark.parametrize("width", [40, 44])
def test_the_gated_mlp_is_that_of_float64_whether_the_functions_take_it_or_not(monkeypatch, width, dtype):
    monkeypatch.setattr("coterie.policies.gated_mlp.rows_at_once", lambda *_: 30)
    x, grad = normal(70, 16, dtype=dtype), normal(70, 16, seed=4, dtype=dtype)
    shapes = [(width, 16), (width, 16), (16, width)]
    gate, up, down = (normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes, 1))
    assert native.suits(gate.T.contiguous()) == (width == 40)

    def mlp(x, gate, up, down):
        return gated(x @ gate.T, x @ up.T) @ down.T

    want, *slopes = gradients(mlp, grad, x, gate, up, down)
    inputs = [y.requires_grad_() for y in (x, gate, up, down)]
    out = gated_mlp(*inputs)
    close(out.detach(), want, dtype, between=2)
    for got, its in zip(torch.autograd.grad(out, inputs, grad), slopes, strict=True):
        close(got, its, dtype, between=2)
