"""The battery every piece that maps columns to columns must pass. Registering a piece subjects it to all of this.

A piece that cannot have a property is named in a table below with the reason; everything else is checked.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracles import inputs
from torch import Tensor

from coterie.columns import COLUMNS, check
from coterie.errors import CoterieError, RecipeError
from coterie.pieces import KINDS, TABLE_KINDS, Piece
from coterie.registry import all_pieces
from coterie.update import _aggregate

# Settings for pieces that cannot run on their defaults: "kind/slug" -> settings.
SETTINGS: dict[str, dict[str, Any]] = {
    "loss/modpo": {"preference": "exact"},
    "loss/srpo_robust": {"revises": "format"},
    "shaping/mutual_verification": {"tests": "e"},
    "baseline/stratified_norm": {"strata": "format"},
    "filter/speed_signal": {"speed": "format"},
    "modifier/difficulty_scale": {"hardness": "format"},
    "modifier/interval_confidence": {"start": "exact", "end": "format"},
    "shaping/interval_consensus": {"start": "exact", "end": "format"},
    "selection/weigh_matched": {"pattern": "x"},
    "shaping/trigger_penalty": {"used": "exact", "needed": "format"},
    "shaping/group_contrast": {"habit": "format"},
    "shaping/staged": {"stage": "format"},
    "shaping/entity_match": {"found": "format"},
    "shaping/tool_efficiency": {"calls": "format"},
    "shaping/mutual_reward": {"side": "format", "understood": "exact", "fits": "exact", "at": 0.2},
    "filter/answerable": {"side": "format", "fits": "exact", "at": 0.2},
    "selection/take_turns": {"side": "format", "every": 2},
    "shaping/gate": {"gated": ["format"], "by": "exact", "at": 0.0},
}
# Baselines whose advantage changes when the same number is added to every reward: "kind/slug" -> reason.
NOT_SHIFT_INVARIANT: dict[str, str] = {
    "baseline/episode_norm": "an episode alone in its group keeps its reward",
    "baseline/state_norm": "an episode alone in its group keeps its reward",
    "baseline/decayed_turn_norm": "it discounts the reward",
    "baseline/fused_value": "it measures rewards against a rate that it knew before",
    "baseline/noisy_verifier_forward": "its baseline is a rate of error, not the group",
    "baseline/virtual_max_norm": "it measures rewards against a fixed maximum",
    "baseline/raw_reward": "it takes no mean off",
    "baseline/value_anchored": "a part of it compares with 0",
}
# Baselines that promise an advantage to groups of equal rewards: "kind/slug" -> reason.
SIGNAL_ON_EQUAL_REWARDS: dict[str, str] = {
    "baseline/state_norm": "turns in one state differ where outcomes do not",
    "baseline/history_norm": "turns in one state differ where outcomes do not",
    "baseline/turn_norm": "turns differ where outcomes do not",
    "baseline/decayed_turn_norm": "of equal rewards the sooner ones are worth more",
    "baseline/aligned_advantage": "turns differ where outcomes do not",
    "baseline/unbroken_turn_norm": "turns differ where outcomes do not",
    "baseline/rank_norm": "what it compares are the items of the lists",
    "baseline/thought_norm": "thoughts differ where outcomes do not",
    "baseline/decoupled_norm": "equal sums of components that differ are told apart",
    "baseline/pareto_norm": "equal sums of components that differ are told apart",
    "baseline/noisy_verifier_forward": "a verdict weighs the same in whatever group it stands",
    "baseline/virtual_max_norm": "equal rewards below the maximum are pushed down",
    "baseline/raw_reward": "the reward is its advantage",
    "baseline/value_anchored": "a part of it compares with 0",
}
# Pieces whose output draws random numbers or depends on the order of rows: "kind/slug" -> reason.
NOT_EQUIVARIANT: dict[str, str] = {
    "baseline/balanced_norm": "which bad rollouts stay is drawn by row",
    "baseline/granular_norm": "the samples of a fork are told apart by their order",
    "baseline/mixed_value_at_risk": "a bundle is made of prompts that follow each other",
    "filter/process_consistency": "of rollouts that agree equally the first go",
    "shaping/serial_decay": "equal exits come in order of row",
    "loss/group_ranking": "equal rewards stand in order of row",
    "selection/swap_tempered": "the first rollouts give way to tempered ones",
    "selection/max_variance": "of equal advantages the first or last rows are taken",
    "selection/drop_pivot": "among equal medians the first row is the pivot",
    "selection/random_steps": "it draws by row",
    "shaping/grpo_lambda": "of groups with the same rate the first ones are chosen",
}
# Objectives whose gradient is meant to differ from the slope of their value: "kind/slug" -> what they hold constant.
NOT_ITS_OWN_SLOPE: dict[str, str] = {
    "loss/contrastive_match": "the size of the error, by which it is divided",
    "loss/discriminative": "by how much the KL exceeds its bound is the penalty's constant factor",
    "loss/topr": "the taper of bad rollouts",
    "term/entropy_band": "the quantiles between which the band lies",
    "trust_region/cispo": "the clipped ratio, which weighs the log-prob",
}
# Settings whose meaning is the same everywhere, so that a docstring may leave them out.
PLAIN = {"coef", "eps", "eps_low", "eps_high", "ddof", "gamma"}

ROW_LEVEL = frozenset(n for n, c in COLUMNS.items() if c.shapes != ("scalar",))
WIDE = frozenset(n for n, c in COLUMNS.items() if "B T" in c.shapes)
DIFFERENTIABLE = ("logp", "entropy", "kl_ref", "mean_gap", "kl_shown", "best_gap", "fine_gap")
DTYPES = (torch.float64, torch.float32)


def name(piece: Piece) -> str:
    return f"{piece.kind}/{piece.slug}"


def of(*kinds: str) -> Any:
    found = [p for p in all_pieces() if p.kind in (kinds or TABLE_KINDS)]
    return pytest.mark.parametrize("piece", found, ids=name)


def run(piece: Piece, table: dict[str, Any]) -> Tensor:
    return piece.bind(SETTINGS.get(name(piece), {}))(table, step=3)


@functools.lru_cache(64)
def _table(kind: str, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    return inputs.tensors(inputs.table(kind, seed), dtype)


def tables(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A table of one's own: what a piece does to it nobody else sees."""
    return {n: copied(v) for n, v in _table(kind, seed, dtype).items()}


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def unchanged(value: Any, before: Any) -> bool:
    if isinstance(before, dict):
        return value.keys() == before.keys() and all(unchanged(value[k], v) for k, v in before.items())
    return torch.equal(value, before) and value.dtype == before.dtype if isinstance(before, Tensor) else value == before


@contextlib.contextmanager
def case(*what: Any) -> Iterator[None]:
    """Says of which of a test's cases an error is. Tables and dtypes are cases of one test: there are thousands."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {', '.join(map(str, what))}")
        raise


def dirty(t: dict[str, Any]) -> dict[str, Any]:
    return {n: inputs.garbage(n, v, t["mask"]) if n in WIDE else v for n, v in t.items()}


def permuted(t: dict[str, Any], order: Tensor) -> dict[str, Any]:
    out = {n: inputs.rows(v, order) if n in ROW_LEVEL else v for n, v in t.items()}
    if len(order) == len(t["parent"]):  # parents are row numbers
        out["parent"] = order.argsort()[out["parent"]]
    return out


def widened(t: dict[str, Any], extra: int) -> dict[str, Any]:
    def pad(value: Tensor) -> Tensor:
        filler = float("nan") if value.is_floating_point() else (0 if value.dtype == torch.bool else -99)
        return torch.nn.functional.pad(value, (0, extra), value=filler)

    return {n: pad(v) if n in WIDE and v.dim() == 2 else v for n, v in t.items()}


def assert_same(got: Tensor, want: Tensor, mask: Tensor) -> None:
    """Equal wherever a decision was taken (what stands in padding is nobody's business)."""
    assert got.dim() == want.dim()
    if got.dim() == 2:
        live = mask[:, : want.shape[1]]
        got, want = got[:, : want.shape[1]][live], want[live]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_the_battery_is_not_empty() -> None:
    found = {p.kind for p in all_pieces()}
    assert found >= TABLE_KINDS - {"filter"} and len(all_pieces()) >= 15
    known = {name(p) for p in all_pieces()}
    assert {*SETTINGS, *NOT_SHIFT_INVARIANT, *NOT_EQUIVARIANT, *SIGNAL_ON_EQUAL_REWARDS, *NOT_ITS_OWN_SLOPE} <= known


def test_the_input_tables_have_every_column() -> None:
    for kind in inputs.KINDS:
        table, dims = tables(kind), {}
        assert set(table) == set(COLUMNS)
        for column, value in table.items():
            check(column, value, dims)
        assert (table["logp"].exp() > 0).all() and (table["lengths"] == table["mask"].sum(-1)).all()


@of()
def test_shape_dtype_finite_and_nothing_mutated(piece: Piece) -> None:
    for kind, dtype in itertools.product(inputs.KINDS, DTYPES):
        with case(kind, dtype):
            t = tables(kind, dtype=dtype)
            out = run(piece, t)
            assert out.dtype == dtype
            assert out.shape in (t["mask"].shape[:1], t["mask"].shape)
            assert out.isfinite().all()
            for column, value in tables(kind, dtype=dtype).items():
                assert unchanged(t[column], value), f"{piece.slug} changed {column} in place"


@of()
def test_the_order_of_rows_does_not_matter(piece: Piece) -> None:
    if reason := NOT_EQUIVARIANT.get(name(piece)):
        pytest.skip(reason)
    for kind in inputs.KINDS:
        with case(kind):
            t = tables(kind)
            order = torch.from_numpy(np.random.default_rng(1).permutation(len(t["rewards"])))
            assert_same(run(piece, permuted(t, order)), inputs.rows(run(piece, t), order), t["mask"][order])


@of()
def test_labels_of_groups_do_not_matter(piece: Piece) -> None:
    t = tables("random")
    assert_same(run(piece, t | {"groups": -5 * t["groups"] + 3}), run(piece, t), t["mask"])


@of()
def test_what_stands_in_padding_does_not_matter(piece: Piece) -> None:
    for kind in inputs.KINDS:
        with case(kind):
            t = tables(kind)
            assert_same(run(piece, dirty(t)), run(piece, t), t["mask"])


@of()
@pytest.mark.parametrize("kind", ["random", "empty_rows"])
def test_the_width_of_padding_does_not_matter(piece: Piece, kind: str) -> None:
    t = tables(kind)
    wide = widened(t, 4)
    got = run(piece, wide)
    if got.dim() == 2:
        assert got.shape[1] == inputs.T + 4
    assert_same(got, run(piece, t), t["mask"])


@of("baseline")
@pytest.mark.parametrize("kind", ["random", "binary", "group_of_one", "one_odd"])
def test_baselines_do_not_see_a_shift_of_all_rewards(piece: Piece, kind: str) -> None:
    if reason := NOT_SHIFT_INVARIANT.get(name(piece)):
        pytest.skip(reason)
    t = tables(kind)
    last = torch.from_numpy(inputs.last(t["mask"].numpy()))
    shifted = t | {"rewards": t["rewards"] + 0.75, "token_rewards": t["token_rewards"] + 0.75 * last}
    shifted["components"] = {k: v + 0.75 for k, v in t["components"].items()}
    assert_same(run(piece, shifted), run(piece, t), t["mask"])


@of("baseline")
def test_equal_rewards_are_worth_exactly_nothing(piece: Piece) -> None:
    if reason := SIGNAL_ON_EQUAL_REWARDS.get(name(piece)):
        assert (run(piece, tables("all_equal")) != 0).any(), reason
        return
    t = tables("all_equal", dtype=torch.float32)
    assert (run(piece, t)[t["mask"]] == 0).all() if run(piece, t).dim() == 2 else (run(piece, t) == 0).all()


@of("modifier", "shaping", "selection", "filter", "baseline")
def test_stages_before_the_update_return_no_graph(piece: Piece) -> None:
    t = tables("random")
    assert not run(piece, t).requires_grad


@of()
def test_every_required_column_is_checked_for_shape(piece: Piece) -> None:
    t = tables("random")
    for column in piece.required:
        if column in ROW_LEVEL and isinstance(t[column], Tensor):
            with pytest.raises(CoterieError, match=f"'{column}'"):
                run(piece, t | {column: t[column].unsqueeze(-1).unsqueeze(-1)})


@of()
def test_settings_bind_and_unknown_ones_are_refused(piece: Piece) -> None:
    defaults = {n: s.default for n, s in piece.settings.items() if not s.required}
    bound = piece.bind(defaults | SETTINGS.get(name(piece), {}))
    assert set(bound.settings) == set(piece.settings)
    with pytest.raises(RecipeError, match="has no setting 'no_such_setting'"):
        piece.bind({"no_such_setting": 1})
    for setting in piece.settings:
        with pytest.raises(RecipeError, match=f"did you mean '{setting}'"):
            piece.bind({setting + "x": 1})
        with pytest.raises(RecipeError, match=f"'{setting}' of"):
            piece.bind({setting: object()})


@of()
def test_numeric_settings_take_a_schedule(piece: Piece) -> None:
    for setting in piece.settings.values():
        if setting.numeric:
            at = piece.bind(SETTINGS.get(name(piece), {}) | {setting.name: {"from": 1, "to": 3, "over": 2}}).at
            assert [at(s)[setting.name] for s in (0, 1, 2, 9)] == [1, 2, 3, 3]


@of()
def test_alone_it_is_an_ordinary_function(piece: Piece) -> None:
    """Called as a plain function from its stage's package it gives what the recipe gets."""
    if piece.stateful:
        pytest.skip("a class is made with its settings first")
    module = inspect.getmodule(piece.fn)
    function = getattr(module, piece.fn.__name__)
    t = tables("random")
    columns = [t[c] for c in (*piece.required, *piece.optional)]
    assert torch.equal(function(*columns, **SETTINGS.get(name(piece), {})), run(piece, t))
    assert function.piece is piece


@of()
def test_it_is_documented(piece: Piece) -> None:
    assert len(piece.summary) > 10
    assert piece.kind in KINDS
    if piece.writes is not None:
        assert piece.writes in COLUMNS
    for setting in piece.settings.values():
        words = [setting.name, *(str(choice) for choice in typing.get_args(setting.annotation))]
        assert setting.name in PLAIN or any(word in piece.doc for word in words), setting.name


# The update: ratio x trust region, losses and terms, under every aggregation.


def pieces(kind: str) -> list[Piece]:
    return all_pieces(kind)


def objective(*chain: Piece) -> Any:
    """The value of a loss, a term, a ratio, or a ratio under a trust region."""

    def value(t: dict[str, Any]) -> Tensor:
        for piece in chain[:-1]:
            t = t | {"ratio": run(piece, t)}
        return run(chain[-1], t)

    value.chain = chain  # type: ignore[attr-defined]  # the pieces it verifies
    return value


OBJECTIVES = {
    **{name(p): objective(p) for kind in ("loss", "term", "ratio", "imitation") for p in pieces(kind)},
    **{f"{r.slug} x {p.slug}": objective(r, p) for r in pieces("ratio") for p in pieces("trust_region")},
}
AGGREGATIONS = {
    f"{p.slug}{list(s.values())}": functools.partial(p.bind(s), step=3)
    for p in pieces("aggregation")
    for s in ([{"scope": "batch"}, {"scope": "group"}] if "scope" in p.settings else [SETTINGS.get(name(p), {})])
}
each_objective = pytest.mark.parametrize("value", OBJECTIVES.values(), ids=OBJECTIVES.keys())
each_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS.values(), ids=AGGREGATIONS.keys())


def gradients(value: Any, t: dict[str, Any], coefficients: Tensor) -> dict[str, Tensor]:
    leaves = {n: t[n].detach().clone().requires_grad_() for n in DIFFERENTIABLE}
    inputs.scalar(value(t | leaves), coefficients).backward()
    return {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}


@each_objective
def test_no_gradient_at_masked_or_dropped_decisions(value: Any) -> None:
    for kind, dtype in itertools.product(inputs.KINDS, DTYPES):
        with case(kind, dtype):
            t = dirty(tables(kind, dtype=dtype))
            token = AGGREGATIONS["token['batch']"](t)
            for gradient in gradients(value, t, token).values():
                assert gradient.dtype == dtype and gradient.isfinite().all()
                assert (gradient[~t["mask"]] == 0).all()
                assert (gradient[t["weights"] == 0] == 0).all()


# A ratio of several decisions has one gradient for all of them: dropping some is the business of the mask it is given.
TOGETHER = ("sequence x ", "turn x ", "ratio/turn")
BY_DECISION = {n: v for n, v in OBJECTIVES.items() if not n.startswith(TOGETHER)}


@pytest.mark.parametrize("value", BY_DECISION.values(), ids=BY_DECISION.keys())
def test_credit_and_weights_by_decision_with_garbage_in_padding(value: Any) -> None:
    t = tables("empty_rows")
    draw = np.random.default_rng(0)
    t["advantages"] = torch.from_numpy(draw.standard_normal(t["mask"].shape))
    t["weights"] = torch.from_numpy(draw.choice([0.0, 1.0], t["mask"].shape))
    clean = gradients(value, t, AGGREGATIONS["token['batch']"](t))
    t = dirty(t)
    for n, gradient in gradients(value, t, AGGREGATIONS["token['batch']"](t)).items():
        assert torch.equal(gradient, clean[n])
        assert (gradient[~t["mask"]] == 0).all()
        if value(t).dim() == 2:  # a value a rollout is weighted as a whole
            assert (gradient[t["weights"] == 0] == 0).all()


@each_objective
def test_something_has_a_gradient(value: Any) -> None:
    t = tables("random")
    assert any((g != 0).any() for g in gradients(value, t, AGGREGATIONS["token['batch']"](t)).values())


@each_objective
@each_aggregation
def test_the_gradient_is_the_same_however_the_update_is_cut(value: Any, aggregation: Any) -> None:
    """Coefficients once for the whole update; then any micro-batches, trimmed or padded to any width."""
    whole_groups = any(piece.whole_groups for piece in value.chain)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        t = tables("empty_rows" if seed == 2 else "random", seed)
        coefficients = aggregation(t)
        want = gradients(value, t, coefficients)
        labels = t["groups"].numpy() if whole_groups else rng.permutation(len(t["rewards"]))
        got = {n: torch.zeros_like(g) for n, g in want.items()}
        for part in np.array_split(rng.permutation(np.unique(labels)), rng.integers(2, 5)):
            index = torch.from_numpy(np.nonzero(np.isin(labels, part))[0])
            micro, extra = permuted(t, index), int(rng.integers(0, 4))
            cut = torch.nn.functional.pad(coefficients[index], (0, extra))
            for n, g in gradients(value, widened(micro, extra), cut).items():
                got[n][index] += g[:, : inputs.T]
        for n in want:
            torch.testing.assert_close(got[n], want[n], rtol=1e-12, atol=1e-14)


def extreme(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """Log-ratios of +-14 in turn, which are ratios of 1e+-6, and -inf for the log-probs of what was never sampled."""
    t = dirty(tables("one_row" if kind == "one_row" else "empty_rows", dtype=dtype))
    jump = torch.where(torch.arange(t["mask"].shape[1]) % 2 == 0, 14.0, -14.0).to(dtype)
    if kind == "nothing_decided":
        t["mask"] = torch.zeros_like(t["mask"])
        t["lengths"] = torch.zeros_like(t["lengths"])
    for other in ("logp_ref", "logp_teacher", "logp_train", "logp_tempered"):
        t[other] = t["logp_old"] - jump
    t["logp"] = t["logp_old"] + jump
    for column in (c for c in t if c.startswith("logp")):
        t[column] = t[column].masked_fill(~t["mask"], -torch.inf)
    return t


@each_objective
def test_extremes_are_finite(value: Any) -> None:
    kinds, aggregations = ("ratios", "one_row", "nothing_decided"), ("token['batch']", "sequence['group']")
    for kind, dtype, aggregation in itertools.product(kinds, [*DTYPES, torch.bfloat16], aggregations):
        with case(kind, dtype, aggregation):
            t = extreme(kind, dtype)
            coefficients = AGGREGATIONS[aggregation](t).to(dtype)
            leaves = {n: t[n].detach().clone().requires_grad_() for n in DIFFERENTIABLE}
            loss = inputs.scalar(value(t | leaves), coefficients)
            assert loss.isfinite()
            if not loss.requires_grad:
                continue
            loss.backward()
            for leaf in leaves.values():
                assert leaf.grad is None or leaf.grad.isfinite().all()
                assert leaf.grad is None or (leaf.grad[~t["mask"]] == 0).all()


@each_objective
def test_gradcheck_where_smooth(value: Any, request: pytest.FixtureRequest) -> None:
    """The gradient is the numerical one, unless the piece holds a function of its inputs constant."""
    reasons = {name(p): NOT_ITS_OWN_SLOPE[name(p)] for p in value.chain if name(p) in NOT_ITS_OWN_SLOPE}
    t = tables("random")
    coefficients = AGGREGATIONS["token['batch']"](t)
    read = {c for p in value.chain for c in (*p.required, *p.optional)}
    used = [n for n in DIFFERENTIABLE if n in read]

    def loss(*leaves: Tensor) -> Tensor:
        return inputs.scalar(value(t | dict(zip(used, leaves, strict=True))), coefficients)

    leaves = [t[n].detach().clone().requires_grad_() for n in used]
    right = torch.autograd.gradcheck(loss, leaves, atol=1e-6, fast_mode=True, raise_exception=False)
    assert right != bool(reasons), reasons or f"not the slope of its value: {request.node.name}"


@pytest.mark.parametrize("shape", ["rollout", "decision"])
def test_the_battery_aggregates_as_the_update_does(shape: str) -> None:
    t = tables("empty_rows")
    value = dirty(t)["logp"] if shape == "decision" else t["rewards"]
    for aggregation in AGGREGATIONS.values():
        assert torch.equal(inputs.scalar(value, aggregation(t)), _aggregate(value, aggregation(t)))


@each_aggregation
def test_coefficients_are_0_where_nothing_was_decided(aggregation: Any) -> None:
    for kind in inputs.KINDS:
        t = tables(kind)
        c = aggregation(t)
        assert (c[~t["mask"]] == 0).all() and (c[t["weights"] == 0] == 0).all() and (c >= 0).all()
        assert ((c > 0) == (t["mask"] & (t["weights"] > 0).unsqueeze(-1))).all()


@of("trust_region", "loss")
def test_objectives_that_say_so_are_zero_without_an_advantage(piece: Piece) -> None:
    """The update leaves rows without an advantage out of the forward pass on the strength of this."""
    t = tables("random")
    t["advantages"] = torch.zeros_like(t["advantages"])
    logp = t["logp"].detach().clone().requires_grad_()
    t["logp"] = logp
    t["ratio"] = (logp - t["logp_old"]).masked_fill(~t["mask"], 0.0).exp()
    value = run(piece, t)
    (gradient,) = torch.autograd.grad(value.sum(), logp, allow_unused=True)
    silent = not value.any() and (gradient is None or not gradient.any())
    assert silent == piece.zero_without_advantage


@of("baseline", "modifier", "ratio")
def test_a_declared_shape_is_the_shape(piece: Piece) -> None:
    """Recipes are refused on the strength of it, before anything is loaded."""
    result = run(piece, tables("random"))
    if piece.shape is not None:
        assert result.dim() == len(piece.shape.split())
    elif piece.kind == "baseline":
        assert result.dim() == 1, "a baseline that returns an advantage a decision says shape='B T'"
