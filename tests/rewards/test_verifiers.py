"""What each verifier takes for right."""

from __future__ import annotations

import signal
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import RewardError
from coterie.rewards.functions import verifier_reward
from coterie.rewards.numbers import boxed, first_number, last_number, parse_number
from coterie.rewards.runner import RewardRunner
from coterie.rewards.verifiers import choice, exact, f1, math_verify, numeric, regex


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", "1234.5"), ("$12", "12"), ("50%", "50"), (r"50\%", "50"), (r"\$18", "18"), ("3/4", "3/4"),
        (r"\frac{3}{4}", "3/4"), (r"\dfrac{3}{ 4 }", "3/4"), ("-7", "-7"), ("−7", "-7"), ("+7.", "7"), (".5", "0.5"),
        ("5.", "5"), ("6.02e23", "602000000000000000000000"), ("1e-3", "0.001"), (" 1,200. ", "1200"),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text, value):
    assert parse_number(text) == Fraction(value)
    assert last_number(f"so it is {text}") == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "abc", "1/0", "1e999", "12 apples", "1.2.3", "--1", "9" * 101, "٣", "1e99999999999"]
)
def test_what_is_no_number(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("between 20-25", 20, 25), ("x-3", 3, 3), ("(4)-3", 4, 3), ("a list (1,2)", 1, 2), ("5 apples, 3 pears", 5, 3),
        ("1,000,000 and 2", 1000000, 2), ("-5 to -3", -5, -3), ("= -8", -8, -8), ("none", None, None),
        ("10 / 4 left", Fraction(5, 2), Fraction(5, 2)), ("$1,200.50 per month.", Fraction(2401, 2), Fraction(2401, 2)),
    ],
)  # fmt: skip
def test_first_and_last_number_of_a_text(text, first, last):
    assert (first_number(text), last_number(text)) == (first, last)


@given(st.fractions(max_denominator=999), st.booleans())
def test_every_number_survives_being_written(value, words):
    text = f"the answer is {value}" if words else str(value)
    assert last_number(text) == value and (words or parse_number(text) == value)


@given(st.text(max_size=300))
def test_no_text_makes_the_number_readers_raise(text):
    for read in (parse_number, first_number, last_number, boxed):
        read(text)


def test_long_hostile_texts_are_read_in_no_time():
    for text in ("9" * 50_000, "1" + " " * 50_000 + "x", "1," * 25_000, "-" * 50_000, r"\frac{1" * 8_000):
        assert last_number(text) is None or last_number(text) >= 0


def test_boxed_balances_braces_and_takes_the_last():
    assert boxed(r"\boxed{1} then \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{open") is None and boxed("nothing") is None


def test_exact():
    assert exact(" Paris\n", "Paris") and not exact("paris", "Paris") and exact("PARIS", "paris", ignore_case=True)
    assert not exact(" Paris", "Paris", strip=False)


def test_numeric():
    assert numeric("Add them: 3 + 4 = 7.", "7") and not numeric("7 then 8", "7") and not numeric("none", "7")
    assert numeric(r"\boxed{1,000} grams in 1 kilo", "1000") and numeric("about 4.5e33", "4.5e33")
    assert numeric("1/3", "0.333", tolerance=0.01) and not numeric("1/3", "0.333")
    assert numeric("101", "100", tolerance=0.01) and not numeric("102", "100", tolerance=0.01)
    with pytest.raises(RewardError, match="'blue' is not a number"):
        numeric("1", "blue")


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("The answer is B", "B"), ("Answer: **B**", "B"), (r"\boxed{B}", "B"),
        ("(A) looks right, but the answer is (B).", "B"), ("A or C? C", "C"), ("answer: A. No, answer: D", "D"),
        (r"the answer is A, \boxed{C}", "C"),
    ],
)  # fmt: skip
def test_choice(completion, letter):
    assert choice(completion, f"({letter.lower()})")
    assert not any(choice(completion, other) for other in set("ABCDE") - {letter})


def test_choice_without_a_letter_and_with_a_reference_that_is_none():
    assert not choice("Because", "B") and choice("(G)", "G", letters="FGH")
    with pytest.raises(RewardError, match="none of the letters ABCDE"):
        choice("A", "Paris")


@pytest.mark.parametrize(
    ("completion", "reference", "value"),
    [
        ("The Denver Broncos!", "denver broncos", 1.0), ("Broncos", "Denver Broncos", 2 / 3), ("no", "yes", 0.0),
        ("b b c", "b c c", 2 / 3), ("the", "a", 1.0), ("", "yes", 0.0),
    ],
)  # fmt: skip
def test_f1_as_squad_computes_it(completion, reference, value):
    assert f1(completion, reference) == pytest.approx(value)


def test_regex():
    assert regex("abc 12", r"\d+") and not regex("abc", r"\d+")
    assert regex("x=1 x=2", "2", pattern=r"x=(\d)") and not regex("x=1 x=2", "1", pattern=r"x=(\d)")
    assert regex("it is 42", "42", pattern=r"\d+") and not regex("none", "42", pattern=r"\d+")


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        (r"So \boxed{\frac{1}{2}}", "0.5", True), ("$x = 3$", "3", True), (r"$\{1, 2\}$", r"\{2,1\}", True),
        (r"$(x+1)^2$", "x^2+2x+1", True), (r"\boxed{7}", "8", False), ("no idea", "8", False),
    ],
)  # fmt: skip
def test_math_verify_without_signals(completion, reference, right, monkeypatch):
    def refuse(seconds):
        raise AssertionError("signal.alarm was used")

    monkeypatch.setattr(signal, "alarm", refuse)
    assert math_verify(completion, reference) is right


def test_math_verify_says_when_a_reference_is_no_expression():
    with pytest.raises(RewardError, match="no expression in the reference"):
        math_verify("1", "")


def test_a_pattern_that_explodes_is_killed():
    reward = verifier_reward({"regex": {"pattern": r"(a+)+$"}}, "answer")
    assert reward.timeout == 10.0 and reward.on_error == "none"
    runner = RewardRunner([replace(reward, timeout=0.3)])
    texts = ["a" * 40 + "b", "aaa"]
    scores = runner.score(["p", "p"], texts, [{"answer": "aaa"}] * 2, [[], []])
    runner.close()
    assert scores.outcomes["regex"] == {"timeout": 1, "value": 1} and scores.components["regex"][1] == 1.0
