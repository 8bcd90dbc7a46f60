"""What every optimizer of Coterie's must do, whatever its method: found in the registry, none can be forgotten."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import coterie.optim
from coterie.metrics import Collector, collect
from coterie.optim.master import MasterWeights, optimize
from coterie.registry import all_pieces
from coterie.schedules import Schedule
from tests.optim.problems import closure_of, logistic, minimise, quadratic

LR = {"cbo": 0.3, "mezo": 0.02, "sparse_mezo": 0.02, "zeroth_order": 0.02, "zo_ranksgd": 0.02}
# Variants of one optimizer: name -> slug and settings. Every registered one is there by itself.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "spam sparse": ("spam", {"density": 0.5, "reset_every": 4, "warmup": 2}),
    "spam resetting": ("spam", {"reset_every": 4, "warmup": 3, "start": 2, "threshold": 2.0}),
    "cosmos of low rank": ("cosmos", {"rank": 1}),
    "zo sign": ("zeroth_order", {"rule": "sign"}),
    "zo momentum": ("zeroth_order", {"momentum": 0.9}),
    "zo adam": ("zeroth_order", {"rule": "adam"}),
    "zo conservative": ("zeroth_order", {"conservative": True}),
    "zo blocks": ("zeroth_order", {"blocks": 2, "samples": 2, "density": 0.5, "sides": 1}),
    "forward gradient": ("zeroth_order", {"eps": 0.0}),
    "ranksgd searching": ("zo_ranksgd", {"line_search": 3}),
    "harpg plain": ("harpg", {"normalise": False}),
    "hesso": ("hesso", {"period": 3, "start": 2}),
}
OWN = [p for p in all_pieces("optimizer") if p.module.startswith("coterie.")]
CASES = {**{p.slug: (p.slug, {}) for p in OWN}, **VARIANTS}
every = pytest.mark.parametrize("case", CASES)


def make(case: str, parameters: Any, **settings: Any) -> torch.optim.Optimizer:
    slug, own = CASES[case]
    piece = next(p for p in OWN if p.slug == slug)
    return piece.bind({"lr": LR.get(slug, 0.01), **own, **settings})({"parameters": parameters})


def model(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """A matrix and a vector."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in ((4, 3), (5,))
    ]


def loss(matrix: Tensor, vector: Tensor) -> Tensor:
    return (
        (matrix.double() - 1).square().sum() + (vector.double() ** 4).sum() + matrix.double()[0] @ vector.double()[:3]
    )


def test_each_is_a_class_of_torch_that_can_be_imported_by_itself() -> None:
    for name in coterie.optim.__all__:
        assert issubclass(getattr(coterie.optim, name), torch.optim.Optimizer)
    made = {type(make(p.slug, model())).__name__ for p in OWN} - {"AdamW", "SGD"}
    assert made == set(coterie.optim.__all__)


@every
def test_a_state_that_was_saved_goes_on_bit_for_bit(case: str) -> None:
    whole, half = model(), model()
    one, two = make(case, whole), make(case, half)
    minimise(one, loss, whole, 12)
    minimise(two, loss, half, 5)
    again = [torch.nn.Parameter(p.detach().clone()) for p in half]
    three = make(case, again)
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    minimise(three, loss, again, 7)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(whole, model(), strict=True))


@every
def test_groups_have_learning_rates_of_their_own(case: str) -> None:
    still, moving = model()
    before = still.detach().clone(), moving.detach().clone()
    optimizer = make(case, [{"params": [still], "lr": 0.0}, {"params": [moving]}])
    minimise(optimizer, loss, [still, moving], 3)
    if CASES[case][0] == "cbo":  # where the group of rate 0 stays is its first cloud
        assert (still - before[0]).abs().max() < 0.1
    elif CASES[case][0] == "hesso":  # rows that are taken away go whatever the rate
        changed = (still != before[0]).any(1)
        assert 0 < changed.sum() < 4
    else:
        torch.testing.assert_close(still.detach(), before[0], rtol=0, atol=1e-12)
    assert not torch.equal(moving, before[1])


@every
def test_weight_decay_pulls_to_0_by_lr_times_its_strength(case: str) -> None:
    """Of a loss that says nothing, only the decay is left; where steps have a length of their own, nothing is."""
    flat = [torch.nn.Parameter(torch.full((3, 2), 2.0, dtype=torch.float64))]
    if CASES[case][0] == "cbo":
        return  # its particles decay: see test_cbo.py
    optimizer = make(case, flat, weight_decay=0.5)
    if CASES[case][0] == "hesso":
        optimizer.param_groups[0]["sparsity"] = 0.0
    if CASES[case][0] == "zo_ranksgd":
        optimizer.param_groups[0]["mu"] = 1e-12
    before = flat[0].detach().clone()
    rate = optimizer.param_groups[0]["lr"]
    plain = make(case, twin := [torch.nn.Parameter(flat[0].detach().clone())], weight_decay=0.0)
    plain.param_groups[0].update({k: v for k, v in optimizer.param_groups[0].items() if k in ("sparsity", "mu")})
    for o, p in ((optimizer, flat), (plain, twin)):
        o.step(closure_of(lambda w: 0.0 * w.sum(), p, o))
    kept = CASES[case][1].get("density", 1.0) < 1 and CASES[case][0] == "spam"
    shrunk = (before * (1 - rate * 0.5)).where(flat[0] != before, before) if kept else before * (1 - rate * 0.5)
    torch.testing.assert_close(flat[0].detach() - twin[0].detach(), shrunk - before, rtol=0, atol=1e-9)
    assert (flat[0] < before).any()


@every
def test_parameters_without_a_gradient_are_left_alone(case: str) -> None:
    """Where the gradient is used. Losses alone do not say which parameters they depend on."""
    if getattr(make(case, model()), "asks", None) == "loss":
        return
    matrix, vector = model()
    idle = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = make(case, [matrix, idle, vector], weight_decay=0.0)
    minimise(optimizer, loss, [matrix, vector], 3)
    if CASES[case][1].get("eps") == 0.0:
        assert not torch.equal(idle, torch.ones(2, 2))  # the forward gradient's direction has entries for all
        return
    assert torch.equal(idle, torch.ones(2, 2))
    assert not torch.equal(matrix, model()[0])


@every
def test_half_precision_learns_on_master_weights_and_resumes(case: str) -> None:
    def fresh() -> tuple[list[torch.nn.Parameter], Any]:
        parameters = model(torch.bfloat16)
        return parameters, optimize(parameters, lambda masters: make(case, masters))

    parameters, optimizer = fresh()
    assert isinstance(optimizer, MasterWeights)
    assert optimizer.asks == getattr(optimizer.inner, "asks", None)

    def step(optimizer: Any, parameters: Any) -> None:
        closure = closure_of(loss, parameters, optimizer)
        if optimizer.asks is None:
            closure()
            optimizer.step()
        else:
            optimizer.step(closure)

    for _ in range(6):
        step(optimizer, parameters)
    for parameter, master in zip(parameters, optimizer.masters, strict=True):
        assert parameter.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(parameter, master.bfloat16()) and parameter.isfinite().all()
    assert any(not torch.equal(a, b) for a, b in zip(parameters, model(torch.bfloat16), strict=True))
    saved = copy.deepcopy(optimizer.state_dict())
    again, other = fresh()
    other.load_state_dict(saved)
    for p, q in zip(again, parameters, strict=True):
        p.data.copy_(q.data)
    step(optimizer, parameters)
    step(other, again)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, other.masters, strict=True))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_precision_stays_finite(case: str, dtype: torch.dtype) -> None:
    parameters = model(dtype)
    optimizer = make(case, parameters)
    minimise(optimizer, loss, parameters, 5)
    assert all(p.dtype == dtype and p.isfinite().all() for p in parameters)
    state = [v for kept in optimizer.state.values() for v in kept.values() if isinstance(v, Tensor)]
    assert all(v.isfinite().all() for v in state)


@every
def test_torch_schedulers_move_the_rate(case: str) -> None:
    parameters = model()
    optimizer = make(case, parameters)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    first = optimizer.param_groups[0]["lr"]
    minimise(optimizer, loss, parameters, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(first / 2)
    minimise(optimizer, loss, parameters, 1)


@every
def test_every_setting_takes_a_schedule_without_forgetting(case: str) -> None:
    """The loop writes the settings of a step into the groups: what the optimizer knows of its past must stay."""
    slug, own = CASES[case]
    piece = next(p for p in OWN if p.slug == slug)
    bound = piece.bind({"lr": Schedule(**{"from": 0.01, "to": 0.0, "over": 4}), **own})
    moved, plain = model(), model()
    optimizer, other = bound({"parameters": moved}), make(case, plain, lr=0.01)
    for step in range(4):
        now = bound({"parameters": moved[:1]}, step).defaults
        for group in optimizer.param_groups:
            group.update(now)
        other.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        minimise(optimizer, loss, moved, 1)
        minimise(other, loss, plain, 1)
    assert all(torch.equal(a, b) for a, b in zip(moved, plain, strict=True))


@every
def test_settings_out_of_range_are_refused(case: str) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        make(case, model(), lr=-1.0)
    with pytest.raises(ValueError, match="Invalid"):
        make(case, model(), weight_decay=-1.0)


@pytest.mark.parametrize(
    ("slug", "settings"),
    [
        ("spam", {"start": 1}), ("spam", {"density": 0.0}), ("spam", {"threshold": -1.0}),
        ("cosmos", {"rank": -1}), ("zeroth_order", {"momentum": 0.5, "rule": "sign"}),
        ("zeroth_order", {"conservative": True, "rule": "adam"}), ("zeroth_order", {"samples": 0}),
        ("mezo", {"eps": -1.0}), ("sparse_mezo", {"sparsity": 1.0}), ("zo_ranksgd", {"best": 0}),
        ("zo_ranksgd", {"candidates": 1}), ("zo_ranksgd", {"mu": 0.0}), ("cbo", {"particles": 1}),
        ("cbo", {"spread": 0.0}), ("n_pg_igt", {"eta": 0.0}), ("harpg", {"radius": 0.0}),
        ("hesso", {"sparsity": 1.0}), ("hesso", {"period": 0}),
    ],
)  # fmt: skip
def test_what_could_not_work_is_refused(slug: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        make(slug, model(), **settings)


@pytest.mark.parametrize("case", [c for c in CASES if getattr(make(c, model()), "asks", None)])
def test_a_loss_that_fails_leaves_the_weights_where_they_were(case: str) -> None:
    parameters = model()
    optimizer = make(case, parameters)
    minimise(optimizer, loss, parameters, 2)
    before = [p.detach().clone() for p in parameters]
    calls: list[int] = []

    def closure() -> float:
        calls.append(1)
        value = closure_of(loss, parameters, optimizer)()
        if len(calls) == 2 or getattr(optimizer, "asks", None) == "gradient":
            raise RuntimeError("out of memory")
        return value

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    if CASES[case][1].get("line_search") or CASES[case][1].get("conservative"):
        return  # the second call there is of a candidate
    for p, was in zip(parameters, before, strict=True):
        torch.testing.assert_close(p.detach(), was, rtol=0, atol=1e-12)


def recorded(case: str, steps: int = 4) -> dict[str, float]:
    parameters = model()
    optimizer = make(case, parameters)
    with collect(into := Collector()):
        minimise(optimizer, loss, parameters, steps)
    return into.means()


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("spam", {"spam/spike_share"}), ("mezo", {"zeroth_order/slope"}),
        ("sparse_mezo", {"zeroth_order/slope", "sparse_mezo/small_share"}),
        ("zo conservative", {"zeroth_order/slope", "zeroth_order/accepted"}),
        ("ranksgd searching", {"zo_ranksgd/length"}), ("cbo", {"cbo/effective_particles", "cbo/distance"}),
        ("n_pg_igt", {"optimizer/direction_norm"}), ("harpg", {"optimizer/direction_norm"}),
        ("hesso", {"hesso/pruned_share"}),
    ],
)  # fmt: skip
def test_what_it_does_is_in_the_metrics(case: str, names: set[str]) -> None:
    found = recorded(case)
    assert names <= found.keys() and all(found[n] >= 0 for n in names)


CONVERGE: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any], int, float]] = {
    "adamw": (quadratic, {"lr": 0.05}, 600, 1e-6),
    "sgd": (quadratic, {"lr": 0.2}, 200, 1e-6),
    "spam": (quadratic, {"lr": 0.05, "reset_every": 150, "warmup": 20}, 600, 1e-4),
    "spam sparse": (quadratic, {"lr": 0.05, "reset_every": 40, "warmup": 5}, 1200, 1e-4),
    "cosmos": (quadratic, {"lr": 0.3}, 800, 1e-4),
    "cosmos of low rank": (quadratic, {"lr": 0.3}, 800, 1e-4),
    "mezo": (quadratic, {"lr": 0.03}, 1500, 1e-6),
    "sparse_mezo": (quadratic, {"lr": 0.03, "sparsity": 0.0}, 1500, 1e-6),
    "zo sign": (quadratic, {"lr": 0.05}, 1500, 1e-2),
    "zo momentum": (quadratic, {"lr": 0.003}, 2500, 1e-6),
    "zo adam": (quadratic, {"lr": 0.05}, 2000, 1e-3),
    "zo conservative": (quadratic, {"lr": 0.05}, 1500, 1e-6),
    "zo blocks": (quadratic, {"lr": 0.1, "eps": 1e-5}, 1500, 1e-5),
    "forward gradient": (quadratic, {"lr": 0.03}, 1500, 1e-6),
    "zo_ranksgd": (quadratic, {"lr": 0.1}, 600, 1e-3),
    "ranksgd searching": (quadratic, {"lr": 0.3, "line_search": 5}, 400, 1e-3),
    "n_pg_igt": (quadratic, {"lr": 0.1}, 800, 1e-3),
    "harpg": (quadratic, {"lr": 0.1}, 800, 1e-3),
    "harpg plain": (quadratic, {"lr": 0.2}, 400, 1e-6),
}


@pytest.mark.parametrize("case", CONVERGE)
def test_it_finds_the_known_optimum(case: str) -> None:
    """Of a quadratic of six weights in a matrix, with the rate falling to 0."""
    problem, settings, steps, gap = CONVERGE[case]
    w = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    minimise(make(case, [w], **settings), problem, [w], steps, lr=lambda done: (1 - done) ** 2)
    assert float(problem(w).detach()) < gap


@pytest.mark.parametrize("case", ["spam", "cosmos", "zo adam", "n_pg_igt", "harpg"])
def test_it_fits_a_logistic_regression(case: str) -> None:
    """As well as Newton's method does, to a thousandth of what there was to win."""
    problem = logistic()
    w = torch.zeros(6, dtype=torch.float64)
    start = float(problem(w))
    for _ in range(30):
        gradient = torch.func.grad(problem)(w)
        w = w - torch.linalg.solve(torch.func.hessian(problem)(w), gradient)
    least = float(problem(w))
    found = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    rate = {"cosmos": 0.3}.get(case, 0.1)
    minimise(make(case, [found], lr=rate), problem, [found], 800, lr=lambda done: (1 - done) ** 2)
    assert float(problem(found).detach()) - least < 1e-3 * (start - least)


def test_what_converges_is_everything() -> None:
    elsewhere = {"cbo", "hesso", "zeroth_order", "spam resetting"}  # the last is SPAM at settings of a test
    assert set(CASES) - set(CONVERGE) == elsewhere
