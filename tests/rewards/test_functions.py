"""How a reward function is named in a recipe, and what is said when it cannot be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from coterie.errors import RecipeError, RewardError
from coterie.rewards.functions import Verdict, WeightedReward, resolve, rewards_of

TASK = SimpleNamespace(name="mine", train=[{"prompt": "p", "answer": "1", "gold": "2"}], rewards=[])


def section(weights=None, timeout=None, on_error=None):
    return SimpleNamespace(weights=weights or {}, timeout=timeout, on_error=on_error)


@pytest.fixture
def graders(tmp_path):
    file = tmp_path / "graders.py"
    file.write_text(
        "LIMIT = 3\n\ndef length(completions, **columns):\n    return [min(len(c), LIMIT) for c in completions]\n\n"
        "class Kit:\n    @staticmethod\n    def ones(completions):\n        return [1.0] * len(completions)\n"
    )
    return file


def test_functions_are_found_in_files_and_modules(graders):
    assert resolve(f"{graders}:length")(completions=["abcd", "a"]) == [3, 1]
    assert resolve(f"{graders}:Kit.ones")(completions=["a"]) == [1.0]
    assert resolve("os.path:basename")("a/b") == "b"
    assert resolve(len) is len


def test_files_of_one_name_stay_apart(tmp_path):
    for folder, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"def f(completions):\n    return [{value}] * len(completions)\n")
    a, b = resolve(f"{tmp_path}/a/r.py:f"), resolve(f"{tmp_path}/b/r.py:f")
    assert (a(["x"]), b(["x"])) == ([1.0], [2.0])
    assert resolve(f"{tmp_path}/a/r.py:f") is a


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("{folder}/grader.py:length", "did you mean 'graders.py'"),
        ("{folder}/graders.py:lenght", "did you mean 'length'"),
        ("{folder}/graders.py:LIMIT", "is not a function"),
        ("{folder}/graders.py", "names no function"),
        ("no_such_package_at_all:f", "importing 'no_such_package_at_all' raised ModuleNotFoundError"),
        (3, "3 is not a function"),
    ],
)
def test_a_bad_name_says_what_is_near(graders, reference, says):
    with pytest.raises(RewardError, match=says):
        resolve(reference.format(folder=graders.parent) if isinstance(reference, str) else reference)


def test_a_file_that_raises_is_named_and_not_kept(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(RewardError, match=r"broken\.py raised ZeroDivisionError"):
            resolve(f"{tmp_path}/broken.py:f")


def test_written_functions_replace_the_tasks_own():
    own = WeightedReward(lambda c, r: True, "correct", per_sample=True)
    task = SimpleNamespace(name="t", train=TASK.train, rewards=[own])
    assert rewards_of(task, [], section()) == ([own], {"correct": 1.0})

    def brevity(completions):
        return [0.0] * len(completions)

    found, weights = rewards_of(task, [brevity, {"fn": "exact", "weight": 2}], section(weights={"brevity": 0.5}))
    assert [f.name for f in found] == ["brevity", "exact"] and weights == {"brevity": 0.5, "exact": 2}


def test_settings_of_one_function_override_those_of_all():
    def f(completions):
        return []

    found, _ = rewards_of(TASK, [f, {"fn": f, "name": "g", "timeout": 9}], section(timeout=3.0, on_error="none"))
    assert [(x.timeout, x.on_error) for x in found] == [(3.0, "none"), (9, "none")]


def test_verifiers_take_settings_and_a_column_and_run_where_they_can_be_killed():
    (numeric, hanging), _ = rewards_of(
        TASK, [{"fn": {"numeric": {"tolerance": 0.5}}, "answer": "gold"}, "math_verify"], section()
    )
    assert isinstance(numeric.fn, Verdict) and numeric.timeout is None
    assert numeric.fn("2.4", TASK.train[0]) and not numeric.fn("0.9", TASK.train[0])
    assert hanging.timeout == 10.0 and hanging.on_error == "none" and hanging.per_sample


@pytest.mark.parametrize(
    ("written", "settings", "says"),
    [
        ([], {}, "comes without a reward"),
        (["exakt"], {}, "did you mean 'exact'"),
        (["exact"], {"weights": {"exat": 1.0}}, "did you mean 'exact'"),
        ([{"fn": "exact", "wieght": 1}], {}, "did you mean 'weight'"),
        ([{"weight": 1}], {}, "name the function"),
        ([{"fn": "exact", "answer": "golden"}], {}, "did you mean 'gold'"),
        ([{"fn": {"exact": {"ignore_cas": True}}}], {}, "did you mean 'ignore_case'"),
        ([{"fn": len, "answer": "gold"}], {}, "'answer' is for verifiers"),
        ([{"fn": "exact", "on_error": "skip"}], {}, "fail, none or zero"),
        ([{"fn": "exact", "weight": "much"}], {}, "weight is a number"),
        ([{"fn": len, "timeout": 0}], {}, "timeout is a number of seconds"),
        (["exact", "exact"], {}, "two reward functions have one name"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(written, settings, says):
    with pytest.raises(RecipeError, match=says):
        rewards_of(TASK, written, section(**settings))
