"""How pieces are declared, found, bound and called. Pieces registered here are taken out again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from coterie import pieces, registry
from coterie.errors import RecipeError, ShapeError
from coterie.schedules import Schedule


@pytest.fixture(autouse=True)
def nothing_stays_registered() -> Iterator[None]:
    registry.all_pieces()
    before, modules = dict(pieces.REGISTERED), set(sys.modules)
    yield
    pieces.REGISTERED.clear()
    pieces.REGISTERED.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("coterie_user_"):
            del sys.modules[name]


def scaled(rewards: Tensor, groups: Tensor, *, by: float = 2.0, mode: Literal["up", "down"] = "up") -> Tensor:
    """Rewards times a number. [B] -> [B]"""
    return rewards * (by if mode == "up" else 1 / by)


def register(fn: Any, kind: str = "credit", **options: Any) -> pieces.Piece:
    return pieces.declare(kind, **options)(fn).piece


TABLE = {"rewards": torch.arange(3.0), "groups": torch.zeros(3, dtype=torch.long)}


class TestDeclaration:
    def test_the_signature_is_the_schema(self) -> None:
        piece = register(scaled, paper="arXiv:1234.5678", whole_groups=True)
        assert (piece.kind, piece.slug, piece.required, piece.optional) == (
            "baseline",
            "scaled",
            ("rewards", "groups"),
            (),
        )
        assert {n: (s.default, s.required, s.numeric) for n, s in piece.settings.items()} == {
            "by": (2.0, False, True),
            "mode": ("up", False, False),
        }
        assert (piece.settings["by"].type_text, piece.settings["mode"].type_text) == ("float", "up | down")
        assert (piece.summary, piece.paper, piece.writes) == (
            "Rewards times a number. [B] -> [B]",
            "arXiv:1234.5678",
            "advantages",
        )
        assert piece.whole_groups and not piece.stateful

    def test_credit_that_reads_advantages_is_a_modifier(self) -> None:
        def louder(advantages: Tensor) -> Tensor:
            return advantages

        assert register(louder).kind == "modifier"

    def test_an_unknown_column_is_refused_at_once_with_the_nearest(self) -> None:
        def wrong(reward: Tensor) -> Tensor:
            return reward

        with pytest.raises(
            RecipeError, match=r"(?s)column 'reward', which is not.*did you mean 'rewards'.*keyword-only"
        ):
            register(wrong)

    def test_a_setting_without_a_star_is_taken_for_a_column(self) -> None:
        def forgot(rewards: Tensor, eps: float = 1e-4) -> Tensor:
            return rewards

        with pytest.raises(RecipeError, match="column 'eps'"):
            register(forgot)

    def test_star_args_are_refused(self) -> None:
        def many(*rewards: Tensor) -> Tensor:
            return rewards[0]

        with pytest.raises(TypeError, match="not \\*rewards"):
            register(many)

    def test_writes_can_be_named_and_the_slug_too(self) -> None:
        piece = register(scaled, "shaping", writes="token_rewards", slug="tripled")
        assert (piece.slug, piece.writes) == ("tripled", "token_rewards")
        assert register(scaled, "shaping").writes == "rewards"

    def test_the_same_slug_from_two_modules_is_refused(self) -> None:
        register(scaled)
        twin = type(scaled)(scaled.__code__, scaled.__globals__, "scaled")
        twin.__annotations__, twin.__kwdefaults__, twin.__module__ = (
            scaled.__annotations__,
            {"by": 1.0, "mode": "up"},
            __name__,
        )
        register(twin)  # the same module again is a reload
        twin.__module__ = "elsewhere"
        with pytest.raises(RecipeError, match=f"'scaled' is defined twice, in {__name__} and in elsewhere"):
            register(twin)

    def test_kinds_outside_the_table_read_what_they_like(self) -> None:
        def anything(size: int, *, k: int = 1) -> list[int]:
            return [size * k]

        piece = register(anything, "curriculum")
        assert piece.bind({"k": 3})({"size": 2}) == [6]


class TestBinding:
    def test_values_are_validated_and_defaults_filled(self) -> None:
        bound = register(scaled).bind({"by": "3"})
        assert bound.settings == {"by": 3.0, "mode": "up"}
        assert bound(TABLE).tolist() == [0.0, 3.0, 6.0]
        assert repr(bound) == "scaled(by=3.0, mode='up')"

    def test_errors_name_the_key_the_type_and_the_place(self) -> None:
        piece = register(scaled)
        with pytest.raises(RecipeError, match=r"(?s)credit\.baseline: .*no setting 'bye'.*did you mean 'by'"):
            piece.bind({"bye": 1}, where="credit.baseline")
        with pytest.raises(RecipeError, match=r"'by' of baseline 'scaled' expects float, got 'lots'"):
            piece.bind({"by": "lots"})
        with pytest.raises(RecipeError, match=r"'mode' .* expects up \| down, got 'sideways'"):
            piece.bind({"mode": "sideways"})

    def test_a_piece_without_settings_says_so(self) -> None:
        with pytest.raises(RecipeError, match="it has no settings"):
            registry.get("baseline", "leave_one_out").bind({"eps": 1})

    def test_a_required_setting_is_asked_for(self) -> None:
        def needy(rewards: Tensor, *, target: float) -> Tensor:
            return rewards - target

        piece = register(needy)
        with pytest.raises(RecipeError, match=r"needs the setting 'target' \(float\)"):
            piece.bind({})
        assert piece.bind({"target": 1.0})(TABLE).tolist() == [-1.0, 0.0, 1.0]

    def test_a_schedule_for_a_number_moves_with_the_step(self) -> None:
        bound = register(scaled).bind({"by": {"from": 0.0, "to": 4.0, "over": 4}})
        assert isinstance(bound.settings["by"], Schedule)
        assert [bound(TABLE, step)[1].item() for step in (0, 1, 4, 9)] == [0.0, 1.0, 4.0, 4.0]
        assert (
            register(scaled).bind({"by": Schedule.model_validate({"from": 1, "to": 2, "over": 1})}).at(1)["by"] == 2.0
        )

    def test_a_bad_schedule_and_a_schedule_for_a_word_are_refused(self) -> None:
        piece = register(scaled)
        with pytest.raises(RecipeError, match="'by'"):
            piece.bind({"by": {"from": 1.0, "to": 2.0, "over": 0}})
        with pytest.raises(RecipeError, match="'mode'"):
            piece.bind({"mode": {"from": 1.0, "to": 2.0, "over": 3}})

    def test_optional_numbers_and_bools(self) -> None:
        def fn(rewards: Tensor, *, cap: float | None = None, on: bool = False) -> Tensor:
            return rewards

        settings = register(fn).settings
        assert settings["cap"].numeric and not settings["on"].numeric
        assert settings["cap"].validate(None) is None


class TestCalling:
    def test_optional_columns_are_passed_when_there(self) -> None:
        def curious(rewards: Tensor, correct: Tensor | None = None) -> Tensor:
            return rewards if correct is None else rewards + correct

        bound = register(curious).bind({})
        assert bound.piece.optional == ("correct",)
        assert bound(TABLE).tolist() == [0.0, 1.0, 2.0]
        assert bound(TABLE | {"correct": torch.tensor([True, True, False])}).tolist() == [1.0, 2.0, 2.0]

    def test_shape_errors_name_the_column_the_piece_and_the_mend(self) -> None:
        bound = register(scaled).bind({})
        with pytest.raises(
            ShapeError, match=r"(?s)baseline 'scaled': column 'rewards' has shape \[3, 1\], expected \[B\].*mend"
        ):
            bound(TABLE | {"rewards": torch.zeros(3, 1)})
        with pytest.raises(ShapeError, match=r"column 'groups' has shape \[2\], expected \[B=3\]"):
            bound(TABLE | {"groups": torch.zeros(2, dtype=torch.long)})
        with pytest.raises(ShapeError, match="column 'rewards' must be a tensor, got list"):
            bound(TABLE | {"rewards": [1.0, 2.0, 3.0]})

    def test_the_result_is_checked_too(self) -> None:
        def column_vector(rewards: Tensor) -> Tensor:
            return rewards.unsqueeze(-1).unsqueeze(-1)

        def shrunk(rewards: Tensor) -> Tensor:
            return rewards[:1]

        for fn in (column_vector, shrunk):
            with pytest.raises(ShapeError, match="its result"):
                register(fn).bind({})(TABLE)

    def test_alone_by_position_or_by_name(self) -> None:
        fn = pieces.credit()(scaled)
        r, g = TABLE["rewards"], TABLE["groups"]
        for got in (fn(r, g), fn(rewards=r, groups=g), fn(r, groups=g), fn(r, g, by=2.0)):
            assert got.tolist() == [0.0, 2.0, 4.0]
        assert fn.__name__ == "scaled" and fn.__doc__ == scaled.__doc__

    def test_alone_misuse_is_pythons_own_error(self) -> None:
        fn = pieces.credit()(scaled)
        r, g = TABLE["rewards"], TABLE["groups"]
        for call in (lambda: fn(r), lambda: fn(groups=g), lambda: fn(r, g, g), lambda: fn(r, g, size=1)):
            with pytest.raises(TypeError):
                call()
        with pytest.raises(TypeError, match="multiple values"):
            fn(r, g, rewards=r)
        with pytest.raises(ShapeError, match="'groups'"):
            fn(r, g[:2])


class Tracker:
    """A mean of what it has seen."""

    def __init__(self, *, rate: float = 0.5) -> None:
        self.rate, self.mean = rate, 0.0

    def __call__(self, rewards: Tensor) -> Tensor:
        self.mean += self.rate * (float(rewards.mean()) - self.mean)
        return rewards - self.mean

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


class TestStateful:
    def test_it_remembers_and_its_state_goes_round(self) -> None:
        piece = register(Tracker, slug="tracker")
        assert piece.stateful and piece.required == ("rewards",) and list(piece.settings) == ["rate"]
        one, two = piece.bind({}), piece.bind({})
        one(TABLE)
        assert one.state_dict() == {"mean": 0.5} and two.state_dict() == {"mean": 0.0}
        two.load_state_dict(one.state_dict())
        assert torch.equal(one(TABLE), two(TABLE))
        assert one.state_dict() == two.state_dict() == {"mean": 0.75}

    def test_a_scheduled_setting_reaches_the_instance(self) -> None:
        bound = register(Tracker, slug="tracker").bind({"rate": {"from": 0.0, "to": 1.0, "over": 10}})
        assert bound(TABLE, 0).tolist() == [0.0, 1.0, 2.0]
        assert bound(TABLE, 10).tolist() == [-1.0, 0.0, 1.0]

    def test_plain_pieces_have_no_state(self) -> None:
        bound = register(scaled).bind({})
        assert bound.state_dict() == {}
        bound.load_state_dict({})

    def test_settings_in_call_are_refused(self) -> None:
        class Confused:
            def __call__(self, rewards: Tensor, *, rate: float = 1.0) -> Tensor:
                return rewards

        with pytest.raises(TypeError, match="settings belong to __init__"):
            register(Confused)

    def test_a_class_without_settings_needs_no_init(self) -> None:
        class Plain:
            def __call__(self, rewards: Tensor) -> Tensor:
                return -rewards

        piece = register(Plain, slug="plain")
        assert piece.settings == {} and piece.bind({})(TABLE).tolist() == [0.0, -1.0, -2.0]

    def test_the_slug_is_the_files_name(self) -> None:
        assert register(Tracker).slug == __name__.rsplit(".", 1)[-1]


MINE = """
from torch import Tensor
from coterie.pieces import credit

@credit()
def halved(rewards: Tensor, *, by: float = 2.0) -> Tensor:
    '''Rewards over a number.'''
    return rewards / by
"""


class TestFinding:
    def test_underscores_or_dashes(self) -> None:
        assert registry.get("baseline", "group-norm") is registry.get("baseline", "group_norm")

    def test_an_unknown_slug_names_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match=r"(?s)credit: unknown baseline 'group_nrom'.*did you mean 'group_norm'"):
            registry.get("baseline", "group_nrom", where="credit")
        with pytest.raises(RecipeError, match="unknown trust region 'zzz'"):
            registry.get("trust_region", "zzz")

    def test_a_users_file(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text(MINE)
        piece = registry.get("baseline", f"{file}:halved")
        assert piece.bind({"by": 4.0})(TABLE).tolist() == [0.0, 0.25, 0.5]
        assert piece in registry.all_pieces("baseline")
        assert registry.get("baseline", f"{file}:halved") is piece  # not loaded again

    def test_a_users_file_that_is_not_there_or_lacks_the_piece(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="no such Python file"):
            registry.get("baseline", f"{tmp_path}/none.py:halved")
        file = tmp_path / "mine.py"
        file.write_text(MINE)
        with pytest.raises(RecipeError, match=r"(?s)mine.py has no baseline 'halve'.*did you mean 'halved'"):
            registry.get("baseline", f"{file}:halve")

    def test_a_users_file_that_breaks_breaks_every_time(self, tmp_path: Path) -> None:
        file = tmp_path / "broken.py"
        file.write_text(MINE + "\nraise ValueError('mine')\n")
        for _ in range(2):
            with pytest.raises(RecipeError, match=r"broken\.py:\d+: importing it raised ValueError: mine"):
                registry.load_file(str(file))

    def test_all_pieces_is_sorted_and_filtered(self) -> None:
        found = registry.all_pieces("ratio")
        assert [p.slug for p in found] == sorted(p.slug for p in found) and {p.kind for p in found} == {"ratio"}
        assert {p.kind for p in registry.all_pieces()} >= {"baseline", "modifier", "loss", "optimizer", "curriculum"}

    def test_a_stage_package_offers_its_pieces_by_name(self) -> None:
        from coterie import credit

        assert credit.group_norm(TABLE["rewards"], TABLE["groups"]).shape == (3,)
