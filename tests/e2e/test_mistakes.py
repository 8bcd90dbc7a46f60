"""Wrong inputs: each gives one clear message that names the place and the mend, a non-zero exit, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY

ROWS = '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+1=", "answer": "3"}\n{"prompt": "2+2=", "answer": "4"}\n'
REWARDS = """
def raises(completions, **columns): raise ValueError("no such luck")
def short(completions, **columns): return [1.0]
def nan(completions, **columns): return [float("nan") for _ in completions]
def scalar(completions, **columns): return 1.0
def wants(completions, anser): return [1.0 for _ in completions]
def none(completions): return [None for _ in completions]
def exits(completions):
    import os
    os._exit(3)
def sleeps(completions):
    import time
    time.sleep(60)
def words(completions, **columns): return ["good" for _ in completions]
notafunction = 3
"""


@dataclass
class Case:
    """Arguments of `coterie`, the files they need, the exit code, and what the message must say."""

    name: str
    args: list[str]
    code: int
    says: list[str]
    files: dict[str, str] = field(default_factory=dict)


def train(*args: str) -> list[str]:
    return ["train", *TINY, *args, "-q", "-o", "run"]


def on_file(*args: str, rows: str = ROWS) -> list[str]:
    base = [a for a in TINY if not a.startswith("task=")]
    return ["train", *base, "--task", "my.jsonl", *args, "-q", "-o", "run"]


def mine(name: str, column: str, returns: str) -> dict[str, str]:
    """A file with one credit piece. Names differ from case to case: a process knows a piece by one file."""
    head = "from coterie.pieces import credit\n@credit()\n"
    return {"mine.py": f"{head}def {name}(rewards, {column}): return {returns}\n"}


DATA = {"my.jsonl": ROWS, "rewards.py": REWARDS}
CASES = [
    Case("missing recipe", ["train", "nowhere.yaml"], 2, ["nowhere.yaml", "No such file"]),
    Case("bad YAML", ["train", "r.yaml"], 2, ["r.yaml:2"], {"r.yaml": "task: sort\n  steps: [1\n"}),
    Case("key twice", ["train", "r.yaml"], 2, ["r.yaml:3", "'steps'"], {"r.yaml": "task: sort\nsteps: 1\nsteps: 2\n"}),
    Case("YAML tag", ["train", "r.yaml"], 2, ["r.yaml:1"], {"r.yaml": "task: !!python/name:os.system x\n"}),
    Case("unknown key", ["train", "r.yaml"], 2, ["r.yaml:3", "group_sise", "'group_size'"],
         {"r.yaml": "task: sort\nrollout:\n  group_sise: 4\n"}),
    Case("wrong type", ["train", "r.yaml"], 2, ["r.yaml:2", "steps", "integer", "'ten'"],
         {"r.yaml": "task: sort\nsteps: ten\n"}),
    Case("wrong type of a piece's setting", ["train", "r.yaml"], 2, ["r.yaml:4", "'eps'", "float", "'tiny'"],
         {"r.yaml": "task: sort\ncredit:\n  baseline:\n    group_norm: {eps: tiny}\n"}),
    Case("unknown setting of a piece", train("credit.baseline.scael=none"), 2, ["scael", "'scale'"]),
    Case("unknown method", train("--method", "dappo"), 2, ["'dappo'", "'dapo'"]),
    Case("unknown piece", train("credit.baseline=group_nrom"), 2, ["group_nrom", "'group_norm'"]),
    Case("unknown task", ["train", "--task", "sorting"], 2, ["'sorting'", "'sort'"]),
    Case("recipe that is no text", ["train", "r.yaml"], 2, ["r.yaml", "not a text file"], {"r.yaml": "\udcff\udcfe"}),
    Case("recipe that is a list", ["train", "r.yaml"], 2, ["r.yaml", "mapping of sections"], {"r.yaml": "- task\n"}),
    Case("alias of itself", ["train", "r.yaml"], 2, ["r.yaml", "refers to itself"], {"r.yaml": "task: &x [*x]\n"}),
    Case("value for a section", ["train", "r.yaml"], 2, ["r.yaml:2", "'rollout' is a section", "group_size"],
         {"r.yaml": "task: sort\nrollout: 4\n"}),
    Case("rewards without 'functions'", ["train", "r.yaml"], 2, ["r.yaml:2", "'rewards' is a section", "functions"],
         {"r.yaml": "task: sort\nrewards: [mine.py:f]\n"}),
    Case("setting of a setting", train("steps.x=2"), 2, ["steps", "integer", "{'x': 2}"]),
    Case("list of methods", ["train", "r.yaml"], 2, ["r.yaml:1", "'method' is a name", "dapo+kl"],
         {"r.yaml": "method: [dapo, kl]\ntask: sort\n"}),
    Case("no method", train("--method", ""), 2, ["no method", "--method grpo"]),
    Case("dangling plus", train("--method", "dapo+"), 2, ["unknown method '+'"]),
    Case("method twice", train("--method", "kl+kl"), 2, ["twice"]),
    Case("model that is a number", train("model=5"), 2, ["'model' is a path", "5"]),
    Case("tiny model that is a number", train("model.init=5"), 2, ["model.init", "dictionary"]),
    Case("schedule without its length", train("rollout.temperature={from: 1, to: 0.5}"), 2,
         ["rollout.temperature: over: field required"]),
    Case("schedule of a piece's setting without its length", train("optimizer.lr={from: 1, to: 0.5}"), 2,
         ["'lr'", "over: field required"]),
    Case("schedule of what is read once", train("task.digits={from: 2, to: 3, over: 5}"), 2,
         ["'digits' of task 'sort'", "no schedule"]),
    Case("negative learning rate", train("optimizer.lr=-1"), 2, ["optimizer=adamw", "Invalid learning rate: -1.0"]),
    Case("two recipes", ["train", "a.yaml", "b.yaml"], 2, ["one recipe at a time", "a.yaml, b.yaml"]),
    Case("no task", ["train", "--model", "m"], 2, ["no task", "--task"]),
    Case("no model", ["train", "--task", "sort"], 2, ["no model", "--model"]),
    Case("methods that conflict", train("--method", "dapo+gspo"), 2,
         ["dapo", "gspo", "objective.ratio", "objective.ratio=sequence"]),
    Case("not a setting", train("stepss"), 2, ["stepss"]),
    Case("greedy rollouts", train("rollout.temperature=0"), 2, ["temperature", "> 0"]),
    Case("more mini-batches than prompts", train("update.minibatches=9"), 2, ["minibatches", "9", "4"]),
    Case("group of one", train("rollout.group_size=1"), 2, ["group_norm", "group_size is 1", "rollout.group_size=8"]),
    Case("column nobody provides", train("credit.baseline=mine.py:by_state"), 2,
         ["by_state", "state_key", "environment"], mine("by_state", "state_key", "rewards")),
    Case("piece file that does not parse", train("credit.baseline=mine.py:f"), 2, ["mine.py:2", "SyntaxError"],
         {"mine.py": "x = 1\ndef f(:\n"}),
    Case("piece file that raises", train("credit.baseline=mine.py:f"), 2, ["mine.py:2", "ZeroDivisionError"],
         {"mine.py": "x = 0\n1 / x\n"}),
    Case("piece of wrong shape", train("credit.baseline=mine.py:column"), 7, ["advantages", "[16, 1]", "[B=16]"],
         mine("column", "groups", "rewards[:, None]")),
    Case("piece that gives NaN", train("credit.baseline=mine.py:not_a_number"), 5, ["loss is not finite"],
         mine("not_a_number", "groups", "rewards * float('nan')")),
    Case("missing piece", train("credit.baseline=mine.py:by_stage"), 2, ["by_stage", "'by_stages'"],
         mine("by_stages", "groups", "rewards")),
    Case("missing piece file", train("credit.baseline=mine.py:by_state"), 2, ["mine.py", "no such"]),
    Case("advantage a decision for a ratio a rollout", train("--method", "gspo", "credit.baseline=whitened_return"), 2,
         ["sequence", "whitened_return", "sequence_token"]),
    Case("missing data", on_file("task.verifier=numeric"), 3, ["my.jsonl", "no such file"]),
    Case("bad JSON line", on_file("task.verifier=numeric"), 3, ["my.jsonl:2"], {"my.jsonl": ROWS[:40] + "oops\n"}),
    Case("empty data", on_file("task.verifier=numeric"), 3, ["my.jsonl", "no rows"], {"my.jsonl": "\n"}),
    Case("missing prompt column", on_file("task.verifier=numeric", "task.prompt=prompts"), 3,
         ["my.jsonl", "'prompts'", "'prompt'"], DATA),
    Case("missing answer column", on_file("task.verifier=numeric", "task.answer=answr"), 3,
         ["my.jsonl", "'answr'", "'answer'"], DATA),
    Case("no reward", on_file(), 2, ["reward", "--reward"], DATA),
    Case("missing reward file", on_file("--reward", "rewrds.py:nan"), 4, ["rewrds.py", "'rewards.py'"], DATA),
    Case("missing reward function", on_file("--reward", "rewards.py:shrt"), 4, ["shrt", "'short'"], DATA),
    Case("not a function", on_file("--reward", "rewards.py:notafunction"), 4, ["notafunction", "not a function"], DATA),
    Case("reward raises", on_file("--reward", "rewards.py:raises"), 4,
         ["'raises'", "ValueError: no such luck", "sample 0", "on_error"], DATA),
    Case("reward of wrong length", on_file("--reward", "rewards.py:short"), 4, ["'short'", "1 values for 16"], DATA),
    Case("reward NaN", on_file("--reward", "rewards.py:nan"), 4, ["'nan'", "sample 0"], DATA),
    Case("reward not a list", on_file("--reward", "rewards.py:scalar"), 4, ["'scalar'", "float"], DATA),
    Case("reward not a number", on_file("--reward", "rewards.py:words"), 4, ["'words'", "'good'"], DATA),
    Case("reward that wants a column the data lack", on_file("--reward", "rewards.py:wants"), 4,
         ["'wants'", "'anser'", "'answer'"], DATA),
    Case("reward that kills its process", on_file("--reward", "rewards.py:exits", "rewards.timeout=60"), 4,
         ["'exits'", "exit code 3", "sample 0"], DATA),
    Case("reward too slow", on_file("--reward", "rewards.py:sleeps", "rewards.timeout=0.2"), 4,
         ["'sleeps'", "timed out after 0.2 s"], DATA),
    Case("rewards that are all None", on_file("--reward", "rewards.py:none"), 4, ["no reward function gave a value"],
         DATA),
    Case("weight of no reward", on_file("--reward", "exact", "rewards.weights.exat=2"), 2, ["'exat'", "'exact'"], DATA),
    Case("conversation without a chat template", on_file("task.verifier=exact"), 6, ["chat template", "chat_template"],
         {"my.jsonl": '{"prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}\n' * 2
          + '{"prompt": [{"role": "user", "content": "1+2="}], "answer": "3"}\n'}),
    Case("learning rate that breaks the model", train("task.dense=true", "optimizer.lr=1e30"), 6, ["NaN", "lower"]),
    Case("missing model folder", train("model={name: ./nowhere}"), 6, ["nowhere"]),
    Case("not a model folder", train("model={name: ./empty}"), 6, ["empty"], {"empty/readme.txt": "hello"}),
    Case("unknown key of the model", train("model.init.layrs=2"), 2, ["layrs", "'layers'"]),
    Case("prompt longer than the context", train("task.digits=9", "model.init.context=8"), 6, ["context", "8"]),
    Case("run directory taken", train(), 5, ["run", "never overwritten"], {"run/notes.txt": "mine"}),
    Case("resume of no run", ["resume", "nowhere"], 5, ["nowhere", "not a run"]),
    Case("export of no run", ["export", "nowhere", "out"], 5, ["nowhere", "not a run"]),
    Case("eval without a task", ["eval", "model"], 2, ["--task"]),
    Case("unknown key of the model in a file", ["train", "r.yaml"], 2, ["r.yaml:5", "model.lora.rank"],
         {"r.yaml": "task: sort\nmodel:\n  init: {layers: 1}\n  lora:\n    rank: 3\n"}),
    Case("value of the model's", train("model.dtype=fp16"), 2, ["'model.dtype=fp16'", "'bfloat16'", "got 'fp16'"]),
    Case("two models in one", ["train", "--task", "sort", "model={name: x, init: {layers: 1}}"], 2,
         ["exactly one of `name`", "'model={name: x"]),
    Case("device that does not exist", train("model.device=cdua"), 6, ["model.device=cdua", "no such device", "cpu"]),
    Case("trust region beside a whole loss", train("objective.loss=reinforce", "objective.trust_region.eps_low=0.1"), 2,
         ["eps_low=0.1", "objective.loss=reinforce takes the place", "objective.loss=null"]),
    Case("ratio beside a method's whole loss", train("--method", "rloo", "objective.ratio=sequence"), 2,
         ["'objective.ratio=sequence'", "objective.loss=reinforce takes the place", "leave objective.ratio out"]),
    Case("methods of which one has a ratio and one a whole loss",
         train("--method", "gspo+opmd", "credit.baseline.scale=none"), 2,
         ["gspo sets objective.ratio=sequence", "objective.loss=opmd of opmd", "objective.loss=null"]),
    Case("reference that nobody reads", train("reference.update=ema"), 2, ["'reference.update=ema'", "grpo+kl"]),
    Case("decay of a frozen reference", train("--method", "grpo+kl", "reference.decay=0.5"), 2,
         ["reference.decay is for reference.update=ema, not frozen"]),
    Case("teacher that nobody reads", train("teacher.model=x"), 2, ["'teacher.model=x'", "kdrl"]),
    Case("warm start without steps", train("warm_start.stop_at=0.2"), 2, ["'warm_start.stop_at=0.2'", "steps=100"]),
    Case("revisions of nothing recorded", train("offline.revise=x"), 2, ["'offline.revise=x'", "--rollouts"]),
    Case("settings of workers without an engine", train("scale.train_workers=2"), 2,
         ["error: 'scale.train_workers=2': scale.train_workers needs an engine", "scale.engine=torchrun"]),
    Case("temperature without end", train("rollout.temperature=.inf"), 2, ["rollout.temperature", "finite", "got inf"]),
    Case("weight that is no number", on_file("--reward", "exact", "rewards.weights.exact=.nan"), 2,
         ["rewards.weights.exact", "finite", "got nan"], DATA),
    Case("value for the weights", on_file("--reward", "exact", "rewards.weights=3"), 2,
         ["'rewards.weights=3'", "rewards.weights.NAME=0.5"], DATA),
    Case("reward function with an unknown key", on_file("rewards.functions=[{fun: exact}]"), 2,
         ["got {'fun': 'exact'}", "'fn'"], DATA),
    Case("pattern that is none", on_file("task.verifier={regex: {pattern: '('}}"), 2,
         ["'pattern' of verifier 'regex'", "valid regular expression"], DATA),
    Case("reward file that exits", on_file("--reward", "exits.py:f"), 4, ["exits.py", "SystemExit: 3"],
         {**DATA, "exits.py": "import sys\nsys.exit(3)\n"}),
    Case("piece file that exits", train("credit.baseline=mine.py:f"), 2, ["mine.py:2", "SystemExit: 3"],
         {"mine.py": "import sys\nsys.exit(3)\n"}),
    Case("piece without its decorator", train("credit.baseline=mine.py:f"), 2, ["'f' of mine.py is no", "@credit()"],
         {"mine.py": "def f(rewards, groups): return rewards\n"}),
    Case("piece file without a name", train("credit.baseline=mine.py"), 2, ["mine.py:NAME"],
         mine("unnamed", "groups", "0")),
    Case("baseline as a modifier", train("credit.modifiers=[mine.py:modest]"), 2,
         ["'modest' of mine.py is a baseline, not a modifier", "'advantages'"], mine("modest", "groups", "rewards")),
    Case("built-in piece by a file's name", train("credit.baseline=mine.py:group_norm"), 2,
         ["mine.py has no baseline 'group_norm'"], {"mine.py": "x = 1\n"}),
    Case("piece that raises", train("credit.baseline=mine.py:beyond"), 2,
         ["mine.py:3", "baseline 'beyond' raised IndexError"], mine("beyond", "groups", "rewards[999]")),
    Case("recorded rollouts without rewards", ["train", *TINY, "--rollouts", "a.jsonl"], 3, ["a.jsonl: ", "'reward'"],
         {"a.jsonl": '{"prompt": "a", "completion": "b"}\n'}),
    Case("cannot change a run that has begun", ["resume", "run", "optimizer.lr=1"], 2, ["optimizer.lr=1", "steps=N"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_mistake_is_named_with_its_mend(case: Case, cli: Callable, tmp_path: Path) -> None:
    for name, text in case.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    answer = cli(*case.args)
    assert answer.code == case.code, answer.err
    assert answer.err.startswith("error: ") and "Traceback" not in answer.err
    for words in case.says:
        assert words in answer.err, answer.err
    for name, text in case.files.items():
        kept = (tmp_path / name).read_text(encoding="utf-8", errors="surrogateescape")
        assert kept == text, "an input file was changed"


def test_conflicting_methods_compose_once_chosen(cli: Callable) -> None:
    refused = cli("plan", *TINY, "--method", "dapo+gspo")
    mend = refused.err.strip().splitlines()[-1].split("example, ")[1].split()
    composed = cli("plan", *TINY, "--method", "dapo+gspo", *mend, "--json")
    slots = {p["slot"]: p["piece"] for p in json.loads(composed.out)["pieces"]}
    assert composed.code == 0 and slots["objective.ratio"] == "sequence" and "selection.filters" in slots


def test_a_failed_run_keeps_what_it_had_and_says_so(cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "calls = 0\ndef late(completions, **columns):\n    global calls\n    calls += 1\n"
        "    if calls > 3: raise RuntimeError('after a while')\n    return [float(len(c)) for c in completions]\n"
    )
    args = [*TINY, "steps=8", "checkpoint.every=1", "--reward", "rewards.py:late"]
    answer = cli("train", *args, "-q", "-o", "run")
    assert answer.code == 4 and "after a while" in answer.err
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed" and "after a while" in status["message"]
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4
    (tmp_path / "rewards.py").write_text(
        "def late(completions, **columns): return [float(len(c)) for c in completions]\n"
    )
    from coterie.rewards import functions

    for name in [n for n in functions.sys.modules if n.startswith(functions.FILE_MODULE)]:
        del functions.sys.modules[name]  # a new process would read the mended file anyway
    assert cli("resume", "run", "-q").code == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"


def test_nothing_left_to_do_is_an_error_and_steps_extend_a_run(cli: Callable, tmp_path: Path) -> None:
    assert cli(*train()).code == 0
    again = cli("resume", "run")
    assert again.code == 5 and "nothing to do" in again.err and "steps=N" in again.err
    assert cli("resume", "run", "steps=3", "-q").code == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 1, 2, 3]


def test_an_empty_completion_is_legal(tmp_path: Path) -> None:
    """A policy that stops at once (EOS only) has one decision, scores and trains."""
    import torch

    from coterie.api import train as run

    def no_text(completions: list[str], **columns: object) -> list[float]:
        return [float(c == "") for c in completions]

    result = run(
        task={"sort": {"digits": 2, "train": 40, "held_out": 12}},
        model={"init": {"layers": 1, "width": 16, "heads": 2, "context": 32}},
        rewards=[no_text], steps=40, out=tmp_path / "run", quiet=True, threads=1,
        draw={"prompts": 4}, optimizer={"adamw": {"lr": 1e-2}},
        **{"rollout.group_size": 8, "rollout.max_tokens": 4, "evaluation.prompts": 8},
    )  # fmt: skip
    assert result.last["length/mean"] < 1.5 and result.last["reward/mean"] > 0.5
    assert all(torch.isfinite(torch.tensor(v)) for v in result.last.values() if isinstance(v, float))
