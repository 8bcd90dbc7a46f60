"""Calls of tools, tools of functions, worlds of tools; and the tokens of an episode with a real chat template."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from coterie import pieces
from coterie.environments import World
from coterie.environments.tool_calls import PYTHON_TAG, Call, Said, parse, write
from coterie.environments.tool_world import ToolWorld
from coterie.environments.tools import Conversation, Tool, ToolError, ask
from coterie.errors import PolicyError, RecipeError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import CHARACTERS, TinySpec
from coterie.rollout.episodes import play
from coterie.rollouts import Prompt, Sampling
from coterie.tasks.base import validate

NAMES = {"add", "look"}
FORMATS = ("hermes", "llama", "xml")


def add(a: int, b: Annotated[int, Field(description="the second number")] = 1) -> int:
    """Add two numbers.

    They are whole.
    """
    return a + b


def look(where: Literal["up", "down"], row: dict[str, Any]) -> str:
    """Look somewhere."""
    if where == "down":
        raise ToolError("there is nothing below")
    return row["sky"]


def told(step: Any) -> str:
    return step.observation if isinstance(step.observation, str) else step.observation["content"]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read(format: Any) -> None:
    call = Call("look", {"where": 'a <b> & "c"\n}d', "name": "né"})
    assert parse(write(call, format), format, NAMES) == Said((call,), (), "")
    assert parse("It is 3.", format, NAMES) == Said((), (), "It is 3.")
    said = parse("<think>" + write(call, format) + "</think> done <answer> 4 </answer>", format, NAMES)
    assert not said.calls and said.answer == "4"
    assert parse("no opening tag</think>5", format, NAMES).answer == "5"


def test_several_calls_text_beside_them_and_what_a_stop_string_leaves() -> None:
    a, b = Call("add", {"a": 1}), Call("look", {})
    said = parse(f"first {write(a, 'hermes')} then {write(b, 'hermes')}", "hermes", NAMES)
    assert said == Said((a, b), (), "first  then")
    assert parse(write(a, "hermes").removesuffix("</tool_call>"), "hermes", NAMES).calls == (a,)
    assert parse(f"{write(a, 'llama')}; {write(b, 'llama')}", "llama", NAMES).calls == (a, b)
    assert parse(f"I ask{PYTHON_TAG}{write(a, 'llama')}", "llama", NAMES) == Said((a,), (), "I ask")
    assert parse(PYTHON_TAG + 'look.call(where="up", n=-1)', "llama", NAMES).calls[0].arguments == {
        "where": "up",
        "n": -1,
    }
    assert parse("hm <add>\n<a>\n1\n</a></add><look></look>", "xml", NAMES) == Said(
        (Call("add", {"a": "1"}), b), (), "hm"
    )
    text = '{"name": "add", "parameters": "{\\"a\\": 2}"}'
    assert parse(f"<tool_call>{text}</tool_call>", "hermes", NAMES).calls == (Call("add", {"a": 2}),)


@pytest.mark.parametrize(
    ("format", "action", "problem"),
    [
        ("hermes", "<tool_call>{'name': 'add'}</tool_call>", "not valid JSON"),
        ("hermes", '<tool_call>{"name": "add"} and</tool_call>', "text follows"),
        ("hermes", "<tool_call></tool_call>", "not valid JSON"),
        ("hermes", '<tool_call>"add"</tool_call>', "a call is an object"),
        ("hermes", '<tool_call>{"name": "sub", "arguments": {}}</tool_call>', "there are add, look"),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "is no object"),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "NaN is no JSON"),
        ("hermes", "<tool_call>" + "[" * 100_000, "not valid JSON"),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": ' + "1" * 9999 + "}}", "not valid JSON"),
        ("hermes", "x</tool_call>", "no <tool_call> before"),
        ("llama", '{"answer": 3}', "a call is an object"),
        ("llama", PYTHON_TAG + "print(3)", "not valid JSON"),
        ("llama", PYTHON_TAG + "add.call(3)", "tool.call(name=value)"),
        ("llama", PYTHON_TAG + "add.call(a=__import__('os'))", "plain values"),
        ("llama", PYTHON_TAG + "sub.call(a=1)", "there is no tool"),
        ("llama", PYTHON_TAG + "add.call(a=" + "-" * 50_000 + "1)", "plain values"),
        ("llama", PYTHON_TAG + "add.call(a=" + "[" * 5_000 + "1", "plain values"),
        ("xml", "<sub><a>1</a></sub>", "there is no tool 'sub'"),
        ("xml", "<add>1</add>", "outside of its arguments"),
        ("xml", "<add><a>1</a><a>2</a></add>", "twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(format: Any, action: str, problem: str) -> None:
    said = parse(action, format, NAMES)
    assert not said.calls and len(said.problems) == 1 and problem in said.problems[0]


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", '{"name":', '"add"', "}", "{", ";", "<add>", "</add>",
       "<a>", "</a>", "<think>", "</think>", "1", PYTHON_TAG, "add.call(", ")", "\\", "\0", "<answer>"])).map("".join),
       st.sampled_from(FORMATS))  # fmt: skip
def test_nothing_that_is_written_breaks_the_reader(action: str, format: Any) -> None:
    assert isinstance(parse(action, format, NAMES).answer, str)


def test_a_tool_of_a_function() -> None:
    tool = Tool.of(add)
    described = tool.schema["function"]
    assert described["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "integer", "description": "the second number"},
        },
        "required": ["a"],
    }
    assert described["description"].endswith("They are whole.") and tool.line == (
        "add(a: integer, b: integer?): Add two numbers."
    )
    assert tool({"a": "2", "b": 3}, {}) == "5"
    for arguments, message in (
        ({}, "needs the argument 'a'"),
        ({"a": 1, "c": 2}, "has no argument 'c'"),
        ({"a": "x"}, "'a' of add: .*integer.*'x'"),
    ):
        with pytest.raises(ToolError, match=message):
            tool(arguments, {})
    with pytest.raises(ToolError, match=r"it is add\(a: integer, b: integer"):
        tool({}, {})

    def many(numbers: list[int]) -> list[int]:
        return numbers[::-1]

    assert Tool.of(many)({"numbers": "[1, 2]"}, {}) == "[2, 1]"  # as XML has it
    assert set(Tool.of(look).parameters) == {"where"} and Tool.of(look)({"where": "up"}, {"sky": "blue"}) == "blue"

    def bare(x):  # type: ignore[no-untyped-def]
        return x

    def odd(x: torch.Tensor) -> str:
        return ""

    for fn in (bare, odd, lambda *a: 0):
        with pytest.raises(RecipeError):
            Tool.of(fn)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("chat", [False, True])
def test_a_world_of_tools(format: Any, chat: bool) -> None:
    world = ToolWorld([add, look], lambda answer, row: 1.0 if answer == "5" else 0.25, format=format, longest=6)
    row = {"prompt": [{"role": "user", "content": "?"}] if chat else "?", "sky": "long and blue"}
    world.reset(row)
    step = world.step(write(Call("add", {"a": 2, "b": 3}), format))
    assert "5" in told(step) and not step.done
    assert step.info == {"calls": 1, "valid": True, "success": False, "ran": True}
    assert isinstance(step.observation, str) != chat
    assert "long a… (7 characters more)" in told(world.step(write(Call("look", {"where": "up"}), format)))
    wrong = world.step(write(Call("look", {"where": "down"}), format))
    assert "error: there is nothing below" in told(wrong) and wrong.info["valid"] and wrong.info["ran"] is False
    bad = world.step(write(Call("jump", {}), format))
    assert "error: there is no tool 'jump'" in told(bad) and not bad.info["valid"] and bad.info["calls"] == 2
    assert bad.info["ran"] is False
    assert "error: argument 'a'" in told(world.step(write(Call("add", {"a": "x"}), format)))
    end = world.step("<answer>5</answer>")
    assert end.done and end.reward == 1.0 and end.info["success"] and end.info["answer"] == "5"
    assert "ran" not in end.info
    world.reset(row)
    end = world.step("6")
    assert end.done and end.reward == 0.25 and not end.info["success"] and end.info["calls"] == 0


def test_a_bug_in_a_tool_is_not_told_to_the_model() -> None:
    def broken() -> str:
        """Break."""
        raise KeyError("x")

    world = ToolWorld([broken], lambda answer, row: 0.0)
    world.reset({"prompt": "?"})
    with pytest.raises(KeyError):
        world.step(write(Call("broken", {}), "hermes"))


TEMPLATE = (
    "{% if tools %}<s>{% for t in tools %}{{ t['function']['name'] }} {% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def policy(template: str) -> CausalLM:
    torch.manual_seed(0)
    made = CausalLM.load(ModelSpec(init=TinySpec(vocabulary=CHARACTERS, layers=1, width=32, heads=4, context=512)))
    made.tokenizer.chat_template = template
    return made


def test_the_template_shows_the_tools_and_every_token_is_accounted_for() -> None:
    speaker = policy(TEMPLATE)
    tools = [Tool.of(add), Tool.of(look)]
    row = {"prompt": ask("2+3?", tools, chat=True), "sky": "blue"}
    prompt = Prompt(speaker.encode(row["prompt"]), row, 0)
    assert speaker.decode(prompt.tokens) == "<s>add look <user>2+3?<assistant>"
    lines = iter([write(Call("add", {"a": 2, "b": 3}), "hermes"), "<answer>5</answer>"])
    sampled: list[list[int]] = []

    class Scripted(ToolWorld):
        """The sampled action gives the tokens; what it does is scripted."""

        def step(self, action: str) -> Any:
            return super().step(next(lines))

    engine = speaker.generate

    def watched(requests: Any, **how: Any) -> Any:
        made = engine(requests, **how)
        sampled.extend(made.tokens[i][made.mask[i]].tolist() for i in range(len(made.tokens)))
        return made

    speaker.generate = watched  # type: ignore[method-assign]
    world = World(lambda: Scripted([add, look], lambda a, r: float(a == "5")), turns=3, turn_tokens=6)
    made = play(speaker, [prompt], [[1]], Sampling(max_tokens=300), world)
    assert made.episodes[0].success and len(sampled) == 2
    tokens, mask = made["tokens"][0], made["mask"][0]
    assert tokens[mask].tolist() == [t for s in sampled for t in s]
    heard = speaker.decode(tokens[~mask].tolist())
    assert heard == "<tool>5<assistant>"
    assert (speaker.score(made)["logp"] - made["logp_old"]).abs().max() < 1e-4


def test_prompts_with_tools() -> None:
    tools = [Tool.of(add), Tool.of(look)]
    text = ask("2+3?", tools, chat=False, how="Be brief.")
    assert isinstance(text, str) and "add(a: integer, b: integer?): Add two numbers." in text
    asked = ask("2+3?", tools, chat=True)
    assert isinstance(asked, Conversation) and asked == [{"role": "user", "content": "2+3?"}]
    for twin in (copy.deepcopy(asked), pickle.loads(pickle.dumps(asked))):
        assert twin == asked and twin.tools == asked.tools == [t.schema for t in tools]
    blind = policy("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(PolicyError, match="does not show them"):
        blind.encode(asked)


def test_the_world_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "REGISTERED", dict(pieces.REGISTERED))
    text = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
    found = re.search(r'^```python title="my_tools.py"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"__name__": "my_tools"}
    exec(found[1], names)
    task = names["inventory"]()
    assert validate(task).ok and len(task.train) + len(task.held_out) == 6
