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
ROWS = [0, 1, 7, 255, 256, 257, 700]
"""Sums of weights' gradients are made in pieces of 256 rows."""
EPS = 1e-5


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def columns(x):
    """The same numbers as columns of something wider, at an odd place."""
    return torch.cat([x.new_full((len(x), 3), 7.0), x, x.new_full((len(x), 2), 9.0)], 1)[:, 3:-2]


def close(got, want, tolerance=1e-5):
    """To this part of what is largest there."""
    assert got.dtype == torch.float32 and got.shape == want.shape
    size = float(want.abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * size)


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


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_norm(rows, width):
    x, weight, grad = columns(3 * normal(rows, width)), 1 + normal(width, seed=1), normal(rows, width, seed=2)
    want, dx, dweight = gradients(normed, grad, x, weight)
    assert native.suits(x, weight)
    y, scale = native.norm(x, weight, EPS)
    close(y, want)
    close(scale, (x.double().square().mean(-1) + EPS).rsqrt())
    back = native.norm_backward(x, weight, scale, grad, True)
    close(back[0], dx)
    close(back[1], dweight)
    alone = native.norm_backward(x, weight, scale, grad, False)
    close(alone[0], dx)
    assert alone[1] is None


def angles(rows, dim):
    angle = normal(rows, dim // 2, seed=5) * 3
    return torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_head(rows, dim, weighted):
    heads = 3 if rows < 700 else 1
    x, weight, grad = columns(2 * normal(rows, heads * dim)), 1 + normal(dim, seed=1), normal(rows, heads, dim, seed=2)
    cos, sin = angles(rows, dim)
    signs = cos.double(), sin.double()
    if weighted:
        want, dx, dweight = gradients(lambda x, w: turned(x, dim, w, *signs), grad, x, weight)
    else:
        want, dx = gradients(lambda x: turned(x, dim, None, *signs), grad, x)
    y, scale = native.head(x, dim, weight if weighted else None, EPS, cos, sin)
    close(y, want)
    assert (scale is not None) == weighted
    back = native.head_backward(x, weight if weighted else None, scale, cos, sin, grad, weighted)
    close(back[0], dx)
    if not weighted:
        assert back[1] is None
        return
    close(back[1], dweight)
    alone = native.head_backward(x, weight, scale, cos, sin, grad, False)
    close(alone[0], dx)
    assert alone[1] is None


def gated(gates, ups):
    return silu(gates) * ups


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_gate(rows, width):
    gates, ups, grad = columns(4 * normal(rows, width)), columns(normal(rows, width, seed=1)), normal(rows, width)
    want, dgates, dups = gradients(gated, grad, gates, ups)
    before = gates.clone(), ups.clone()
    close(native.gate(gates, ups), want)
    back = native.gate_backward(gates, ups, grad.clone())
    for got, its in zip(back, (want, dgates, dups), strict=True):
        close(got, its)
    assert torch.equal(gates, before[0]) and torch.equal(ups, before[1])


def test_gates_of_any_size():
    """Each to a part of its own size, down to where a float32 has none."""
    some = [0.0, 1e-40, 1e-30, 1e-6, 0.1, 1.0, 5.0, 15.0, 80.0, 86.9, 87.1, 88.0, 89.0, 200.0, 1e4, 1e9, 3e38]
    gates = torch.tensor([[*some, *(-x for x in some)]]).repeat(1, 4)
    ups = torch.tensor([[1.0] * 34 + [-1.0] * 34 + [0.0] * 34 + [1e-6] * 34])
    want, dgates, dups = gradients(gated, torch.ones_like(gates), gates, ups)
    back = native.gate_backward(gates, ups, torch.ones_like(gates))
    for got, its in zip((native.gate(gates, ups), *back), (want, want, dgates, dups), strict=True):
        torch.testing.assert_close(got.double(), its, rtol=2e-6, atol=2e-35)


def test_norms_of_any_size():
    """Nothing, less than a normal number, little, much; and so much that its square is none, which torch makes 0."""
    sizes = torch.tensor([0.0, 1e-41, 1e-30, 1e-10, 1e-3, 1e5, 1e17]).unsqueeze(1)
    x, weight, grad = sizes * normal(7, 64), 1 + normal(64, seed=1), normal(7, 64, seed=2)
    want, dx, _ = gradients(normed, grad, x, weight)
    y, scale = native.norm(x, weight, EPS)
    got, dweight = native.norm_backward(x, weight, scale, grad, True)
    for row in range(7):
        close(got[row], dx[row])
        torch.testing.assert_close(
            y[row].double(), want[row], rtol=1e-5, atol=float(1e-5 * want[row].abs().max() + 1e-43)
        )
    assert dweight.isfinite().all()
    many = torch.full((1, 64), 1e25)
    assert torch.equal(native.norm(many, weight, EPS)[0], torch.zeros(1, 64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_row_and_is_seen_there(bad):
    x, weight, grad = normal(4, 16), 1 + normal(16, seed=1), normal(4, 16, seed=2)
    x[1, 3] = bad
    want = normed(x, weight)
    y, scale = native.norm(x, weight, EPS)
    alike(y, want)
    dx, dweight = native.norm_backward(x, weight, scale, grad, True)
    assert dx[1].isnan().any() and dweight.isnan().any() and dx[[0, 2, 3]].isfinite().all()
    cos, sin = angles(4, 8)
    plain = rotate(normed(x.unflatten(1, (2, 8)), weight[:8]), cos.unsqueeze(1), sin.unsqueeze(1))
    alike(native.head(x, 8, weight[:8], EPS, cos, sin)[0], plain, rtol=1e-5, atol=1e-5)
    fine = normal(4, 16)
    _, scale = native.norm(fine, weight, EPS)
    grad[2, 5] = bad
    dx, dweight = native.norm_backward(fine, weight, scale, grad, True)
    assert not dx[2].isfinite().any() and dx[[0, 1, 3]].isfinite().all()
    assert not dweight[5].isfinite() and int(dweight.isfinite().sum()) == 15


@pytest.mark.parametrize("where", ["gates", "ups", "slope"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gates_that_are_no_numbers_are_those_of_torch(where, bad):
    one = {"gates": normal(2, 16), "ups": normal(2, 16, seed=1), "slope": normal(2, 16, seed=2)}
    one[where][1, 4] = bad
    gates, ups, slope = one.values()
    want = gated(gates, ups), torch.ops.aten.silu_backward(slope * ups, gates), slope * silu(gates)
    got = native.gate_backward(gates, ups, slope.clone())
    torch.testing.assert_close(native.gate(gates, ups), want[0], equal_nan=True)
    for mine, its in zip(got, want, strict=True):
        torch.testing.assert_close(mine, its, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert not all(bool(x.isfinite().all()) for x in got)


@pytest.mark.parametrize("rows", [257, 700])
def test_threads_change_no_bit(threads, rows):
    width = 128
    x, weight, grad = normal(rows, width), 1 + normal(width, seed=1), normal(rows, width, seed=2)
    cos, sin = angles(rows, 32)

    def everything():
        y, scale = native.norm(x, weight, EPS)
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
    assert native.suits(fits, None, fits[:, 8:], fits[0])
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


@pytest.mark.parametrize("trained", [True, False])
def test_a_norm_and_its_weight_get_the_gradients_of_float64(trained):
    """Also of a gradient that is no memory of its own."""
    x, weight = normal(300, 24).requires_grad_(), (1 + normal(24, seed=1)).requires_grad_(trained)
    out = Norm(weight, EPS)(x)
    out.sum().backward()
    want, dx, dweight = gradients(normed, torch.ones(300, 24), x.detach(), weight.detach())
    close(out.detach(), want)
    close(x.grad, dx)
    if trained:
        close(weight.grad, dweight)
    else:
        assert weight.grad is None
    with torch.no_grad():
        assert torch.equal(Norm(weight, EPS)(x), out)


@pytest.mark.parametrize("width", [40, 44])
def test_the_gated_mlp_is_that_of_float64_whether_the_functions_take_it_or_not(monkeypatch, width):
    monkeypatch.setattr("coterie.policies.gated_mlp.rows_at_once", lambda *_: 30)
    x, grad = normal(70, 16), normal(70, 16, seed=4)
    gate, up, down = normal(width, 16, seed=1), normal(width, 16, seed=2), normal(16, width, seed=3)
    assert native.suits(gate.T.contiguous()) == (width == 40)

    def mlp(x, gate, up, down):
        return gated(x @ gate.T, x @ up.T) @ down.T

    want, *slopes = gradients(mlp, grad, x, gate, up, down)
    inputs = [y.requires_grad_() for y in (x, gate, up, down)]
    out = gated_mlp(*inputs)
    close(out.detach(), want)
    for got, its in zip(torch.autograd.grad(out, inputs, grad), slopes, strict=True):
        close(got, its)
