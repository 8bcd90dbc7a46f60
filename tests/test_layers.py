"""What is written, and where: YAML with line numbers, key=value arguments, dotted keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import RecipeError
from coterie.layers import from_dotted, leaves, read_override, read_yaml, read_yaml_file

TEXT = """\
# a comment
task:
  sort:
    digits: 3

steps: 7
objective:
  terms:
    - kl: {coef: 0.1}
    - entropy_bonus
"""
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("abc", max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_every_key_knows_its_line() -> None:
    layer = read_yaml(TEXT, "r.yaml")
    assert layer.tree == {
        "task": {"sort": {"digits": 3}}, "steps": 7, "objective": {"terms": [{"kl": {"coef": 0.1}}, "entropy_bonus"]},
    }  # fmt: skip
    assert layer.where(("task", "sort", "digits")) == "r.yaml:4"
    assert layer.where(("steps",)) == "r.yaml:6"
    assert layer.where(("objective", "terms", "0", "kl", "coef")) == "r.yaml:9"
    assert layer.where(("objective", "terms", "1")) == "r.yaml:10"


def test_what_has_no_line_of_its_own_is_where_the_key_around_it_is() -> None:
    layer = read_yaml(TEXT, "r.yaml")
    assert layer.where(("task", "sort", "alphabet")) == "r.yaml:3"
    assert layer.where(("optimizer",)) == "r.yaml"
    assert read_override("steps=3").where(("steps",)) == "'steps=3'"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("1e-3", "1e-3"), ("0.5", 0.5), ("true", True), ("null", None), ("", None), ("a=b", "a=b"),
        ("[a, b]", ["a", "b"]), ("{from: 1, to: 0, over: 5}", {"from": 1, "to": 0, "over": 5}), ("'8'", "8"),
        ("file.py:name", "file.py:name"), ("C:/x", "C:/x"),
    ],
)  # fmt: skip
def test_the_value_of_an_argument_is_yaml(text: str, value: object) -> None:
    assert read_override(f"rollout.stop={text}").tree == {"rollout": {"stop": value}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: [\n", r"r\.yaml:\d: not valid YAML"), ("a: 1\na: 2\n", r"r\.yaml:2: 'a' is written twice"),
        ("a:\n  b: 1\n  b: 2\n", r"r\.yaml:3: 'b' is written twice"), ("- a\n", "mapping of sections"),
        ("just words", "mapping of sections"), ("a: !!python/name:os.system x", r"r\.yaml:1: the YAML tag 'python/"),
        ("a: &x {b: *x}", "refers to itself"), ("\x00", "not valid YAML"), ("a: !mine 3", "tag '!mine' is not allowed"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read_yaml(text, "r.yaml")


def test_an_alias_is_the_value_it_stands_for() -> None:
    assert read_yaml("a: &x {b: 1}\nc: *x\n", "r.yaml").tree == {"a": {"b": 1}, "c": {"b": 1}}


def test_an_empty_file_says_nothing() -> None:
    assert read_yaml("# nothing\n", "r.yaml").tree == {}


@pytest.mark.parametrize("text", ["steps", "=3", "  =3"])
def test_an_argument_is_key_and_value(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a setting"):
        read_override(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder, not a recipe"):
        read_yaml_file(tmp_path)
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not a text file"):
        read_yaml_file(tmp_path / "r.yaml")


def test_dotted_and_nested_keys_join() -> None:
    tree = from_dotted({"rollout": {"top_k": 1}, "rollout.top_p": 0.5, "credit.baseline.eps": 1, "steps": 2}, "x").tree
    assert tree == {"rollout": {"top_k": 1, "top_p": 0.5}, "credit": {"baseline": {"eps": 1}}, "steps": 2}
    assert from_dotted({"rollout.top_p": 0.5, "rollout": {"top_k": 1}}, "x").tree["rollout"] == {
        "top_p": 0.5,
        "top_k": 1,
    }


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), plain, max_size=4))
def test_the_leaves_are_the_tree(tree: dict) -> None:
    """Nothing is lost on the way to the leaves, an empty mapping included, and a stop key is one leaf."""
    rebuilt: dict = {}
    for path, value in leaves(tree, frozenset()):
        node = rebuilt
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    assert rebuilt == tree
    assert dict(leaves(tree, frozenset(tree))) == {(key,): value for key, value in tree.items()}
