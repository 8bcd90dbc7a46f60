"""Strategies that fork, on a real (tiny) policy: what a row takes over, where it forks, and that nothing is guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.api import resume, start
from coterie.build import build
from coterie.clock import Clock
from coterie.collect import collect, select_groups
from coterie.errors import RecipeError
from coterie.loop import credit, select
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.recipe import resolve
from coterie.rollout.strategies.segment_probes import segment_probes
from coterie.rollout.strategies.segment_tree import segment_tree
from coterie.rollout.strategies.serial_exit import serial_exit
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream
from tests.e2e.conftest import TINY

STRATEGIES: dict[str, Any] = {
    "segment_probes": lambda *a, **k: segment_probes(*a, probes=2, interval=2, **k),
    "segment_tree": lambda *a, **k: segment_tree(*a, branching=(2, 2, 2), **k),
    "serial_exit": lambda *a, **k: serial_exit(*a, cue="=>", **k),
}
every = pytest.mark.parametrize("strategy", STRATEGIES)


@pytest.fixture(scope="module")
def policy() -> CausalLM:
    return made(context=64)


def made(**init: Any) -> CausalLM:
    """One token in eleven ends the text, so that some completions do."""
    init = {"layers": 1, "width": 16, "heads": 2, "vocabulary": "1234>+=a", **init}
    return CausalLM.load(ModelSpec(init=init, seed=3))


def rolled(policy: CausalLM, strategy: str, *, seed: int = 0, count: int = 2, entropy: bool = False) -> Rollouts:
    prompts = [Prompt(policy.encode(text), {}, i) for i, text in enumerate(["12>", "3+4=", "a"][:count])]
    seeds = [[stream(seed, "rollout", p, k) for k in range(8)] for p in range(count)]
    sampling = Sampling(temperature=0.7, max_tokens=11)
    return STRATEGIES[strategy](policy, prompts, seeds, sampling, entropy)


@every
def test_log_probs_and_entropies_are_those_of_the_whole_row(policy: CausalLM, strategy: str) -> None:
    """What a row took over keeps what was captured; scoring the stitched row gives the same."""
    made = rolled(policy, strategy, entropy=True)
    with torch.no_grad():
        scored = policy.score(made, ("logp", "entropy"))
    mask = made["mask"]
    torch.testing.assert_close(scored["logp"][mask], made["logp_old"][mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scored["entropy"][mask], made["entropy_old"][mask], atol=1e-5, rtol=1e-5)
    assert "entropy_old" not in rolled(policy, strategy)


@every
def test_a_fork_begins_as_its_parent(policy: CausalLM, strategy: str) -> None:
    made = rolled(policy, strategy)
    parent, branch, groups = made["parent"], made["branch"], made["groups"]
    forks = (branch >= 0).nonzero().flatten().tolist()
    assert forks and (groups[parent] == groups).all()
    assert (branch[parent[forks]] < branch[forks]).all(), "a fork goes out from what its parent decided itself"
    for i in forks:
        n, p = int(branch[i]), int(parent[i])
        for column in ("tokens", "mask", "logp_old"):
            assert torch.equal(made[column][i, :n], made[column][p, :n])
    rest = sorted(set(range(len(made))) - set(forks))
    assert parent[rest].tolist() == rest


@every
def test_the_same_seeds_make_the_same_table_whatever_else_is_drawn(policy: CausalLM, strategy: str) -> None:
    one, again, alone, other = (rolled(policy, strategy, seed=s, count=n) for s, n in ((0, 2), (0, 2), (0, 1), (1, 2)))
    assert one.texts == again.texts != other.texts
    for column in ("tokens", "mask", "parent", "branch"):
        assert torch.equal(one[column], again[column])
    assert alone.texts == one.texts[: len(alone)] or strategy == "segment_probes"
    assert set(alone.texts) <= set(one.texts)


@every
def test_nothing_is_longer_than_the_budget_and_a_table_may_lose_rows(policy: CausalLM, strategy: str) -> None:
    made = rolled(policy, strategy)
    assert made["mask"].shape[1] <= 11 and (made["lengths"] == made["mask"].sum(-1)).all()
    keep = torch.arange(len(made)) % 3 != 0
    cut = made.rows(keep)
    old = keep.nonzero().flatten()
    for i in range(len(cut)):
        before = int(made["parent"][old[i]])
        assert int(old[cut["parent"][i]]) == (before if bool(keep[before]) else int(old[i]))
    both = Rollouts.concat([made, cut])
    assert both["parent"].tolist() == [*made["parent"].tolist(), *(cut["parent"] + len(made)).tolist()]
    second = select_groups(made, made["groups"] == 1)
    assert (second["parent"] < len(second)).all() and (second["groups"] == 0).all()


@every
def test_no_two_forks_are_drawn_alike(policy: CausalLM, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every continuation has a seed of its own, in this step and in the next."""
    asked: list[int] = []
    generate = policy.generate

    def spy(requests: Any, **options: Any) -> Any:
        asked.extend(seed for r in requests for seed in r.seeds)
        return generate(requests, **options)

    monkeypatch.setattr(policy, "generate", spy)
    for seed in (0, 1):
        rolled(policy, strategy, seed=seed)
    assert len(set(asked)) == len(asked) > 16


@every
@pytest.mark.parametrize("context", [10, 11, 12])
def test_the_models_context_ends_a_row_as_the_budget_does(strategy: str, context: int) -> None:
    made_here = rolled(made(context=context), strategy)
    sizes = torch.tensor([len(p.tokens) for p in made_here.prompts])[made_here["groups"]]
    width = torch.arange(1, made_here["mask"].shape[1] + 1)
    assert int((sizes + (made_here["mask"] * width).amax(-1)).max()) == context


def test_probes_go_out_from_uncertain_decisions(policy: CausalLM) -> None:
    made = rolled(policy, "segment_probes")
    own = (made["branch"] < 0).nonzero().flatten().tolist()
    assert len(own) == 16
    for i in own:
        unsure = (made["logp_old"][i].exp() < 0.9) & made["mask"][i]
        cuts = unsure.nonzero().flatten().tolist()[::2]
        mine = (made["branch"] >= 0) & (made["parent"] == i)
        assert sorted(made["branch"][mine].tolist()) == sorted(cuts * 2)
    same = [t for i, t in enumerate(made.texts) if i not in own]
    assert len(set(same)) > len(same) / 4, "probes of a cut differ"


def test_a_tree_is_as_wide_as_it_says(policy: CausalLM) -> None:
    made = rolled(policy, "segment_tree")
    turn, key, mask = made["turn"], made["state_key"], made["mask"]
    count = turn.amax(-1) + 1
    assert (turn[~mask] == -1).all() and count.max() == 3 and len(made) <= 16
    assert (turn == 1).sum(-1).max() <= 4 and (turn == 0).sum(-1).max() <= 4, "a third of the budget"
    for g in (0, 1):
        rows = (made["groups"] == g).nonzero().flatten().tolist()
        assert len({int(key[i, 0]) for i in rows}) == 1
        for u in range(3):
            nodes = {int(key[i, u]) for i in rows if count[i] > u}
            for node in nodes:
                below = [i for i in rows if count[i] > u and key[i, u] == node]
                starts = {int((turn[i] < u)[mask[i]].sum()) for i in below}
                (n,) = starts
                assert len({tuple(made["tokens"][i, :n].tolist()) for i in below}) == 1, "one past"
                children = {int(key[i, u + 1]) if count[i] > u + 1 else -1 - i for i in below}
                assert len(children) == 2
    ended = (count < 3).nonzero().flatten().tolist()
    assert all(not bool(made["truncated"][i]) for i in ended)


def test_the_leaves_of_a_tree_learn_every_edge_once(policy: CausalLM) -> None:
    from coterie.selection import drop_shared

    made = rolled(policy, "segment_tree")
    w = drop_shared(made["branch"], made["mask"], torch.ones(len(made)))
    edges: dict[tuple[int, int], float] = {}
    for i in range(len(made)):
        for u in range(int(made["turn"][i].max()) + 1):
            last = u == int(made["turn"][i].max())
            child = (-1 - i) if last else int(made["state_key"][i, u + 1])
            weight = w[i][made["turn"][i] == u].unique()
            assert len(weight) == 1
            edges[u, child] = edges.get((u, child), 0.0) + float(weight)
    assert set(edges.values()) == {1.0}


def test_exits_are_told_to_answer(policy: CausalLM) -> None:
    made = rolled(policy, "serial_exit")
    cue = list(policy.encode_completion("=>"))
    assert made["groups"].tolist() == [0] * 8 + [1] * 8
    for g in (0, 1):
        rows = range(8 * g, 8 * g + 8)
        assert made["branch"][rows[0]] == -1 and (made["parent"][list(rows)] == rows[0]).all()
        exits = made["branch"][list(rows)[1:]].tolist()
        thought = int(made["lengths"][rows[0]]) - int(not made["truncated"][rows[0]])
        assert exits == sorted(exits) and all(0 < e <= min(thought, 8) for e in exits) and len(set(exits)) > 1
        for i, n in zip(rows[1:], exits, strict=True):
            assert made["tokens"][i, n : n + 2].tolist() == cue
            assert made["mask"][i].tolist()[: n + 3] == [True] * n + [False] * 2 + [True]
            assert "=>" in made.texts[i]


def test_exits_lie_in_the_thought(policy: CausalLM) -> None:
    """Where the text that ends a thought occurs, exits are from what comes before."""
    whole = rolled(policy, "serial_exit")
    text = whole.texts[0]
    made = serial_exit(
        policy, whole.prompts[:1], [[stream(0, "rollout", 0, k) for k in range(8)]], whole.sampling, False,
        cue="=>", end=text[3:5],
    )  # fmt: skip
    assert made.texts[0] == text and text.index(text[3:5]) == 3
    ids = made["tokens"][0].tolist()
    before = max(n for n in range(len(ids)) if policy.decode(ids[:n]) == text[:3])
    assert made["branch"][1:].min() >= 1 and made["branch"].max() == before


@pytest.mark.parametrize(
    ("strategy", "overrides", "message"),
    [
        ("{segment_tree: {branching: [2, 3]}}", ["rollout.group_size=8"], r"2-3 has 6 leaves(.|\n)*group_size=6"),
        ("serial_exit", ["rollout.group_size=1", "credit.baseline=whitened_return"], "groups of at least 2 rollouts"),
        ("{serial_exit: {cue: '>>>>'}}", [], "leaves no room(.|\n)*max_tokens"),
        ("segment_probes", ["rollout.stop=['1']"], r"a stop string may lie across a cut(.|\n)*rollout.stop=\[\]"),
        ("{segment_probes: {probes: 0}}", [], "at least 1, got 0"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused(strategy: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run = build(resolve(overrides=[*TINY, f"rollout.strategy={strategy}", *overrides]))
        run.metrics = {}
        collect(run, 0, Clock())


SETTINGS = {
    "spo-chain": ["rollout.strategy.probes=2", "rollout.strategy.interval=2"],
    "spo-tree": ["rollout.strategy.branching=[2,2]"],
    "s-grpo": ["rollout.strategy.cue='>'", "rewards.shaping.serial_decay.metric=rewards"],
}


@pytest.mark.parametrize("method", SETTINGS)
def test_a_resumed_run_forks_as_one_that_never_stopped(method: str, tmp_path: Any) -> None:
    overrides = [*TINY, "task.dense=true", "evaluation.prompts=1", *SETTINGS[method]]
    whole = start(resolve(method=method, overrides=[*overrides, "steps=3"]), tmp_path / "whole", quiet=True)
    start(resolve(method=method, overrides=overrides), tmp_path / "parts", quiet=True)
    parts = resume(tmp_path / "parts", steps=3, quiet=True)
    a, b = (
        {k: v for k, v in r.last.items() if not k.startswith(("time/", "system/", "tokens/per_"))}
        for r in (whole, parts)
    )
    assert a == b


def test_probes_are_measured_and_not_learned_from() -> None:
    run = build(resolve(method="spo-chain", overrides=[*TINY, "task.dense=true", *SETTINGS["spo-chain"]]))
    run.metrics = {}
    batch = collect(run, 0, Clock())
    assert batch is not None and len(batch) > 16 and len(batch["components"]) == 1
    batch = select(run, credit(run, batch, 0, Clock()), 0, Clock())
    probes = batch["branch"] >= 0
    assert (batch["weights"][probes] == 0).all() and (batch["weights"][~probes] != 0).any()
