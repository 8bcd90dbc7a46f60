"""Pieces compose: every one of them, in random recipes with the others, through the loop's own stages.

A recipe is one baseline, modifiers, shaping, a filter, selections and an objective with its aggregation and terms,
drawn at random from the registry and kept where `wiring.check` accepts it. What the conformance battery excuses a piece
from (its tables say why), it is excused from here.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from oracles import inputs
from test_conformance import NOT_EQUIVARIANT, SETTINGS, dirty, permuted, tables
from torch import Tensor

from coterie import wiring
from coterie.clock import Clock
from coterie.collect import _apply_filters, shape
from coterie.columns import COLUMNS, SHOWN
from coterie.errors import RecipeError
from coterie.history import History
from coterie.loop import credit, select
from coterie.metrics import Collector
from coterie.pieces import TABLE_KINDS, Piece
from coterie.recipe import CHAIN, SINGLE, Recipe, resolve
from coterie.registry import all_pieces
from coterie.rollouts import Prompt, Rollouts
from coterie.run import Run
from coterie.update import _loss
from coterie.workers import Alone

PIECES = [p for p in all_pieces() if p.kind in TABLE_KINDS and p.module.startswith("coterie.")]
SLOT = {kind: slot for slot, kind in {**SINGLE, **CHAIN}.items()}
MOST = {"shaping": 2, "filter": 1, "modifier": 2, "selection": 2, "term": 2}
"""Pieces of a kind that a recipe may have several of."""
VARIED = ("scope", "scale", "level")
"""Settings whose choices are drawn too."""
LATER = {"token_rewards", "advantages", "ratio", "step", "budget", "reward_weights"}
"""Columns that the loop makes on the way, or that are no columns of a table."""
SCORED = ("logp", "entropy", "kl_ref", "mean_gap", "kl_shown", "best_gap", "fine_gap")
"""Columns that carry gradient."""
PROVIDED = frozenset(name for name, c in COLUMNS.items() if c.provider == "environment")
STEP = 3

Choice = tuple[tuple[str, dict[str, Any]], ...]
"""'kind/slug' and settings of each piece."""


def name(piece: Piece) -> str:
    return f"{piece.kind}/{piece.slug}"


BY_NAME = {name(p): p for p in PIECES}
BY_KIND = {kind: [p for p in PIECES if p.kind == kind] for kind in TABLE_KINDS}


@st.composite
def choices(draw: Any, given_piece: Piece) -> Choice:
    """A recipe that holds the given piece."""

    def some(kind: str) -> list[Piece]:
        has = [given_piece] if given_piece.kind == kind else []
        if kind in MOST:
            rest = st.lists(st.sampled_from(BY_KIND[kind]), max_size=MOST[kind] - len(has), unique_by=name)
            chain = [*has, *(p for p in draw(rest) if p not in has)] if BY_KIND[kind] else has
            return draw(st.permutations(chain)) if len(chain) > 1 else chain
        return has or [draw(st.sampled_from(BY_KIND[kind]))]

    whole = given_piece.kind == "loss" or (given_piece.kind not in ("ratio", "trust_region") and draw(st.booleans()))
    objective = ("loss",) if whole else ("ratio", "trust_region")
    kinds = ("shaping", "filter", "baseline", "modifier", "selection", *objective, "term", "aggregation")
    out = []
    for piece in itertools.chain.from_iterable(some(kind) for kind in kinds):
        chosen = {
            n: draw(st.sampled_from(typing.get_args(s.annotation)))
            for n, s in piece.settings.items()
            if n in VARIED and typing.get_origin(s.annotation) is typing.Literal
        }
        out.append((name(piece), SETTINGS.get(name(piece), {}) or chosen))
    return tuple(out)


BASE = resolve(values={"task": "sort"})


def recipe_of(choice: Choice) -> Recipe:
    """The recipe, its pieces with memory new. Raises RecipeError where its pieces do not fit."""
    single = {slot: b for slot, b in BASE.single.items() if SINGLE[slot] not in TABLE_KINDS}
    chain: dict[str, list[Any]] = {slot: [] for slot in CHAIN}
    for named, chosen in choice:
        piece = BY_NAME[named]
        slot = SLOT[piece.kind]
        if slot in CHAIN:
            chain[slot].append(piece.bind(chosen))
        else:
            single[slot] = piece.bind(chosen)
    recipe = Recipe(BASE.settings, single, chain, "random", [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two normalisations in a row are allowed, and warned of
        wiring.check(recipe, has_verifier=True, provides=PROVIDED)
    return recipe


def rollouts_of(t: dict[str, Any]) -> Rollouts:
    """The table as the loop holds it: groups are the numbers of their prompts, and each row keeps its own number."""
    labels, groups = torch.unique(t["groups"], return_inverse=True)
    columns = {n: v for n, v in t.items() if n not in LATER} | {"groups": groups}
    prompts = [Prompt((1,), {}, i) for i in range(len(labels))]
    return Rollouts(prompts, columns, texts=[str(i) for i in range(len(groups))])


@dataclasses.dataclass
class Outcome:
    """What an update makes of a table. Rows that a filter took away have weight 0; the rest as in `rows`."""

    rows: Tensor
    batch: Rollouts
    loss: Tensor
    gradients: dict[str, Tensor]
    """By column, at the rows of the table that was given. [B,T]"""

    def at(self, column: str) -> Tensor:
        return self.batch[column]


def update(choice: Choice, t: dict[str, Any], *, nudge: float = 0.0) -> Outcome | None:
    """Shape, filter, credit, select, and the loss with its gradient. None: no group passed the filter.

    `nudge` is added to what the policy says of decisions that have no weight.
    """
    recipe, clock = recipe_of(choice), Clock()
    leaves: dict[str, Tensor] = {}
    coefficients = torch.zeros(0)

    def score(micro: Rollouts, wanted: set[str]) -> dict[str, Tensor]:
        for column in SCORED:
            leaves[column] = micro[column].clone().requires_grad_()
        return {n: torch.where(coefficients == 0, leaf + nudge, leaf) for n, leaf in leaves.items()}

    run = SimpleNamespace(recipe=recipe, settings=recipe.settings, score_columns=set(SCORED))
    run.reward_weights, run.history = t["reward_weights"], History()
    run.workers, run.recorded = Alone(), None
    run.policy, run.budget = SimpleNamespace(score=score, independent=False), recipe.settings.rollout.max_tokens
    run.policy.score_shown = lambda micro, template: {n: micro[n] for n in SHOWN - leaves.keys()}
    run.learner = run.policy
    run.table = lambda rollouts, step: Run.table(run, rollouts, step) | {"budget": inputs.BUDGET}  # type: ignore[arg-type]
    batch: Rollouts | None = shape(run, rollouts_of(t), STEP, clock)  # type: ignore[arg-type]
    if recipe.chain["selection.filters"]:
        batch = _apply_filters(run, batch, STEP, clock)  # type: ignore[arg-type]
    if batch is None:
        return None
    batch = select(run, credit(run, batch, STEP, clock), STEP, clock)  # type: ignore[arg-type]
    coefficients = recipe.single["objective.aggregation"](run.table(batch, STEP), STEP)
    loss = _loss(run, batch, coefficients, STEP, Collector())  # type: ignore[arg-type]
    if loss.requires_grad:
        loss.backward()
    kept, gradients = torch.tensor([int(text) for text in batch.texts]), {}
    for column, leaf in leaves.items():
        gradients[column] = torch.zeros(t["mask"].shape, dtype=leaf.dtype)
        if leaf.grad is not None:
            gradients[column][kept, : leaf.shape[1]] = leaf.grad
    return Outcome(kept, batch, loss.detach(), gradients)


def dropped(outcome: Outcome, shape: torch.Size) -> Tensor:
    """Decisions of the table without weight, or of rows that a filter took away. [B,T] bool"""
    out = torch.ones(shape, dtype=torch.bool)
    weights = outcome.at("weights")
    weights = weights.unsqueeze(-1).expand(outcome.at("mask").shape) if weights.dim() == 1 else weights
    out[outcome.rows, : weights.shape[1]] = (weights == 0) | ~outcome.at("mask")
    return out


def same(got: Outcome, want: Outcome, order: Tensor | None = None, tolerance: float = 1e-9) -> None:
    """Equal losses and gradients; row i of `got` is row order[i] of `want`."""
    size = max(1.0, float(want.loss.abs()), *(float(g.abs().max()) for g in want.gradients.values()))
    torch.testing.assert_close(got.loss, want.loss, rtol=tolerance, atol=tolerance * size)
    for column, gradient in want.gradients.items():
        gradient = gradient if order is None else gradient[order]
        torch.testing.assert_close(got.gradients[column], gradient, rtol=tolerance, atol=tolerance * size)


def undecided(advantages: Tensor) -> bool:
    """Whether some advantage is 0 but for rounding: its sign, which pieces read, hangs on the order of a sum."""
    size = advantages.nan_to_num().abs()
    return bool(((size > 0) & (size < 1e-12)).any())


@pytest.mark.parametrize("piece", PIECES, ids=name)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_it_composes_with_the_others(piece: Piece, data: st.DataObject) -> None:
    choice = data.draw(choices(piece), label="recipe")
    kind = data.draw(st.sampled_from(inputs.KINDS), label="table")
    seed = data.draw(st.integers(0, 1000), label="seed")
    try:
        recipe_of(choice)
    except RecipeError as error:
        note(f"refused: {error}")
        assume(False)
    t = tables(kind, seed)
    del t["weights"]  # the loop's, 1 everywhere, in half of the examples
    if data.draw(st.booleans(), label="with weights"):
        t["weights"] = tables(kind, seed)["weights"]

    found = update(choice, t)
    if found is None:
        return
    rollouts, mask = found.batch, found.at("mask")
    for column in ("advantages", "weights"):
        value = rollouts[column]
        assert value.shape in (mask.shape[:1], mask.shape), column
        assert not value.requires_grad and value.dtype == torch.float64
        assert (value[mask] if value.dim() == 2 else value).isfinite().all(), column
    assert found.loss.dim() == 0 and found.loss.isfinite()
    silent = dropped(found, t["mask"].shape)
    for gradient in found.gradients.values():
        assert gradient.isfinite().all()
        assert (gradient[silent] == 0).all(), "a decision without weight, or padding, has a gradient"
    if (nudged := update(choice, t, nudge=0.5)) is not None:  # nor does anybody else's depend on it
        same(nudged, found, tolerance=0.0)

    filthy = update(choice, dirty(t))
    assert filthy is not None
    same(filthy, found)

    if any(named in NOT_EQUIVARIANT for named, _ in choice):
        return
    order = torch.randperm(len(t["groups"]), generator=torch.Generator().manual_seed(seed))
    moved = permuted(t, order)
    moved["groups"] = -3 * moved["groups"]  # the groups change their order too
    other = update(choice, moved)
    assert other is not None
    if not any(undecided(o.at("advantages")) for o in (found, other)):
        same(other, found, order)


def test_there_is_much_to_combine() -> None:
    assert len(PIECES) >= 15 and all(BY_KIND[kind] for kind in TABLE_KINDS)


def test_the_check_of_dropped_decisions_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A term that reads what has no weight is caught: by its gradient or by its value."""
    piece = BY_NAME["term/entropy_bonus"]
    leaky = dataclasses.replace(piece, fn=lambda entropy, mask, *, coef=1.0: coef * entropy.nan_to_num().sum(-1))
    monkeypatch.setitem(BY_NAME, "term/entropy_bonus", leaky)
    choice: Choice = tuple(
        (n, {}) for n in ("baseline/group_norm", "ratio/token", "trust_region/ppo_clip", "term/entropy_bonus",
                          "aggregation/token")
    )  # fmt: skip
    found = update(choice, tables("random"))
    assert found is not None
    assert (found.gradients["entropy"][dropped(found, tables("random")["mask"].shape)] != 0).any()
