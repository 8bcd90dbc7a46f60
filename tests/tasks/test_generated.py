"""Sort, countdown, addition and arithmetic: problems are right, distinct, held out by content, and repeatable."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie import registry
from coterie.errors import RecipeError
from coterie.tasks import arithmetic, countdown, reversed_addition, sort
from coterie.tasks.base import validate
from coterie.tasks.countdown import solves
from coterie.tasks.expressions import MAX_LENGTH, NotAnExpression, evaluate, numbers_in

MADE = {"sort": sort, "countdown": countdown, "reversed-addition": reversed_addition, "arithmetic": arithmetic}
small = st.integers(0, 2**31)


@pytest.mark.parametrize("slug", MADE)
def test_every_reference_is_accepted_and_every_corruption_rejected(slug):
    task = MADE[slug](train=300, held_out=60, seed=3)
    report = validate(task)
    assert report.ok and report.rows == report.corrupted == 360 and task.name == slug
    assert registry.get("task", slug).fn is MADE[slug]


@pytest.mark.parametrize("slug", MADE)
def test_problems_are_distinct_held_out_and_repeatable(slug):
    a, b, other = (MADE[slug](train=300, held_out=60, seed=s) for s in (1, 1, 2))
    assert (a.train, a.held_out) == (b.train, b.held_out) and a.train != other.train
    prompts = [r["prompt"] for r in (*a.train, *a.held_out)]
    assert len(set(prompts)) == len(prompts) == 360
    text = "".join(p + a.reference(r) for p, r in zip(prompts, (*a.train, *a.held_out), strict=True))
    assert set(text) <= set(a.vocabulary)


def test_the_same_problem_in_another_order_is_not_on_both_sides():
    task = countdown(train=1500, held_out=200)
    content = [{(r["target"], *sorted(r["numbers"])) for r in part} for part in (task.train, task.held_out)]
    assert not content[0] & content[1]
    task = reversed_addition(digits=2, train=3000, held_out=500)
    content = [{frozenset(r["prompt"][:-1].split("+")) for r in part} for part in (task.train, task.held_out)]
    assert not content[0] & content[1]


def test_arithmetic_in_another_order_is_not_on_both_sides():
    """A sum read as signed products: 4-2*3 is +4, -2*3."""

    def content(row):
        terms = row["prompt"][:-1].replace("-", "+-").split("+")
        return Counter((t.startswith("-"), *sorted(t.lstrip("-").split("*"))) for t in terms).items()

    for operators, terms in (("+", 2), ("+-*", 3)):
        task = arithmetic(digits=1, terms=terms, operators=operators, train=60, held_out=20)
        train, held = ({frozenset(content(r)) for r in part} for part in (task.train, task.held_out))
        assert not train & held and len(held) == 20


@given(digits=st.integers(2, 9), seed=small)
def test_sort_sorts(digits, seed):
    task = sort(digits=digits, train=20, held_out=5, seed=seed)
    for row in (*task.train, *task.held_out):
        given_digits = row["prompt"].removesuffix(">")
        assert len(given_digits) == digits and "".join(sorted(given_digits)) == row["answer"]
        assert task.verify(f" {row['answer']}\n", row) and not task.verify(row["answer"] + row["answer"][-1], row)


def test_sort_by_the_order_of_its_alphabet_and_dense_reward():
    task = sort(digits=4, alphabet="zyx", train=40, held_out=5, dense=True)
    row = next(r for r in task.train if len(set(r["answer"])) > 1)
    assert [*row["answer"]] == sorted(row["prompt"][:-1], reverse=True) and validate(task).ok
    share = task.rewards[0].fn
    assert share(row["answer"], row) == 1.0 and share("", row) == 0.0 and share(row["answer"][:2], row) == 0.5
    assert share(row["answer"] * 2, row) == 0.5 and task.verdict is None


@given(
    terms=st.integers(1, 5),
    digits=st.integers(2, 6),
    operators=st.sampled_from(["+", "-", "*", "+-", "+-*"]),
    seed=small,
)
def test_arithmetic_is_right(terms, digits, operators, seed):
    task = arithmetic(terms=terms, digits=digits, operators=operators, train=20, held_out=5, seed=seed)
    for row in (*task.train, *task.held_out):
        text = row["prompt"].removesuffix("=")
        assert eval(text) == int(row["answer"])
        assert len(numbers_in(text)) == terms and max(numbers_in(text)) < 10**digits


@given(digits=st.integers(2, 18), seed=small)
def test_reversed_addition_is_right(digits, seed):
    for row in reversed_addition(digits=digits, train=20, held_out=5, seed=seed).train:
        a, b = (int(x[::-1]) for x in row["prompt"].removesuffix("=").split("+"))
        assert str(a + b) == row["answer"][::-1]


@given(numbers=st.integers(2, 5), operators=st.sampled_from(["+-", "+-*", "+-*/"]), use_all=st.booleans(), seed=small)
def test_countdown_is_solvable(numbers, operators, use_all, seed):
    task = countdown(numbers=numbers, operators=operators, use_all=use_all, train=20, held_out=5, seed=seed)
    for row in (*task.train, *task.held_out):
        assert 0 <= row["target"] <= 99 and len(row["numbers"]) == numbers
        assert Counter(numbers_in(row["solution"])) == Counter(row["numbers"])
        assert set(row["solution"]) <= set("0123456789" + operators)
    assert validate(task).ok


def test_countdown_counts_each_number():
    assert solves("(7 - 2)*3", [2, 3, 7], 15) and solves("7-2*3", [2, 3, 7], 1)
    assert not solves("3*5", [2, 3, 7], 15) and not solves("7+7+1", [7, 1, 2], 15)
    assert not solves("7-3", [2, 3, 7], 4) and solves("7-3", [2, 3, 7], 4, use_all=False)
    assert not solves("3+3", [2, 3], 6, use_all=False)
    assert solves("8/(3-8/3)", [8, 3, 8, 3], 24), "exact rational arithmetic"


def test_countdown_agrees_with_brute_force():
    """Every expression over (2, 3, 4) without parentheses, against Python's own Fractions."""
    for order in itertools.permutations([2, 3, 4]):
        for ops in itertools.product("+-*/", repeat=2):
            text = f"{order[0]}{ops[0]}{order[1]}{ops[1]}{order[2]}"
            want = eval(f"F({order[0]}){ops[0]}F({order[1]}){ops[1]}F({order[2]})", {"F": Fraction})
            assert evaluate(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "()", "1+", "+1", "1 2", "(1", "1)", "1//2", "2**99", "1/0", "1/(2-2)", "1.5", "1e9", "0x10", "1_000",
        "x", "__import__('os')", "1;2", "1=1", "１", "²", "9" * 13, "(" * 200 + "1" + ")" * 200, "-" * 250 + "1",
        "1+" * 200 + "1", "2*3+7 = 13", "\x00", "1\n2", "1,2", "lambda:0", "1if 1else 2", "1 # 2",
    ],
)  # fmt: skip
def test_hostile_expressions_are_refused(text):
    with pytest.raises(NotAnExpression):
        evaluate(text)
    assert not solves(text, [1, 2], 3)


@given(st.text(alphabet="0123456789+-*/() \n", max_size=MAX_LENGTH + 5) | st.text(max_size=50))
def test_any_text_gets_a_verdict(text):
    assert solves(text, [1, 2], 3) in (True, False)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_the_calculator_agrees_with_python(values, data):
    text = str(values[0])
    for value in values[1:]:
        text = f"({text})" if data.draw(st.booleans()) else text
        text += data.draw(st.sampled_from("+-*")) + data.draw(st.sampled_from(["", "-"])) + str(value)
    assert evaluate(text) == eval(text)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sort(digits=1, train=100), "only about 10 distinct problems"),
        (lambda: sort(digits=0), "at least 1 digit"),
        (lambda: sort(alphabet="aa"), "different characters"),
        (lambda: countdown(operators="+^"), r"any of \+-\*/"),
        (lambda: countdown(numbers=1), "at least 2 numbers"),
        (lambda: countdown(numbers=200), "at most 300 characters"),
        (lambda: countdown(max_target=-1), "no expression over 3 numbers"),
        (lambda: arithmetic(operators="/"), r"any of \+-\*"),
        (lambda: arithmetic(digits=13), "1 to 12 digits"),
        (lambda: arithmetic(terms=0), "1 to 12 digits"),
        (lambda: reversed_addition(digits=19), "1 to 18 digits"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, says):
    with pytest.raises(RecipeError, match=says):
        make()
