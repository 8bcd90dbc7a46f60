"""Every sample ends as a value, none, an error or a timeout; anything else is refused by name."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from coterie.errors import RewardError
from coterie.rewards.functions import WeightedReward, resolve
from coterie.rewards.runner import RewardRunner

TEXTS = ["a", "bb", "ccc"]


@pytest.fixture
def score():
    """score(*functions, …) on three samples; the runner's processes end with the test."""
    runners = []

    def run(*functions, texts=TEXTS, rows=None, prompts=None):
        runners.append(RewardRunner(functions))
        rows = [{"prompt": f"p{i}", "answer": t} for i, t in enumerate(texts)] if rows is None else rows
        prompts = [r["prompt"] for r in rows] if prompts is None else prompts
        return runners[-1].score(prompts, texts, rows, [[i] * len(t) for i, t in enumerate(texts)])

    yield run
    for runner in runners:
        runner.close()


def lengths(completions):
    return [float(len(c)) for c in completions]


def test_values_and_columns_as_trl_passes_them(score):
    seen = {}

    def everything(prompts, completions, completion_ids, answer, **columns):
        seen.update(prompts=prompts, ids=completion_ids, answer=answer, columns=columns, completions=completions)
        return [1, True, None]

    rows = [{"prompt": "x", "answer": 1}, {"prompt": "y", "answer": 2, "level": 3}, {"prompt": "z", "answer": 4}]
    scores = score(WeightedReward(everything, "f"), rows=rows)
    assert scores.components["f"][:2] == [1.0, 1.0] and math.isnan(scores.components["f"][2])
    assert scores.outcomes["f"] == {"value": 2, "none": 1} and not scores.errors
    assert (
        seen["prompts"] == ["x", "y", "z"] and seen["ids"] == [[0], [1, 1], [2, 2, 2]] and seen["answer"] == [1, 2, 4]
    )
    assert seen["columns"] == {"level": [None, 3, None]} and seen["completions"] == TEXTS


def test_conversations_get_messages_and_verifiers_text(score):
    prompts = [[{"role": "user", "content": "hi"}]] * 3

    def chat(completions):
        return [float(len(c[0]["content"])) if c[0]["role"] == "assistant" else -1.0 for c in completions]

    def exact(completion, row):
        return completion == row["answer"]

    scores = score(WeightedReward(chat, "chat"), WeightedReward(exact, "exact", per_sample=True), prompts=prompts)
    assert scores.components == {"chat": [1.0, 2.0, 3.0], "exact": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, lambda x: [np.float32(v) for v in x],
                                  lambda x: [torch.tensor(v) for v in x]])  # fmt: skip
def test_arrays_and_their_scalars_are_numbers(score, make):
    scores = score(WeightedReward(lambda completions: make([0.5, 1.0, -2.0]), "f"))
    assert scores.components["f"] == [0.5, 1.0, -2.0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([1.0], "gave 1 values for 3 completions"),
        ([1.0] * 4, "gave 4 values for 3 completions"),
        (1.0, "gave float 1.0, not a list"),
        (np.float64(1.0), "not a list"),
        (None, "gave NoneType None, not a list"),
        ([1.0, math.nan, 0.0], "'f' gave nan for sample 1"),
        ([1.0, 1.0, math.inf], "'f' gave inf for sample 2"),
        ([1.0, "1", 0.0], "'f' gave '1' for sample 1"),
        ([[1.0]] * 3, r"'f' gave \[1.0\] for sample 0"),
        ([10**400] * 3, "for sample 0"),
        ([1j] * 3, "for sample 0"),
        ([torch.ones(2)] * 3, "for sample 0"),
    ],
)
@pytest.mark.parametrize("on_error", ["fail", "none", "zero"])
def test_what_is_no_reward_is_refused_under_every_policy(score, answer, says, on_error):
    with pytest.raises(RewardError, match=says):
        score(WeightedReward(lambda completions: answer, "f", on_error=on_error))


def test_a_column_the_data_lack_is_named(score):
    with pytest.raises(RewardError, match=r"takes 'anwser'(.|\n)*did you mean 'answer'"):
        score(WeightedReward(lambda completions, anwser: [0.0], "f", on_error="none"))


def picky(completions):
    if "bb" in completions:
        raise ValueError("no bb")
    return [float(len(c)) for c in completions]


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_raise_is_isolated_to_its_sample(score, timeout):
    with pytest.raises(RewardError, match="'f' raised ValueError: no bb on sample 1: prompt 'p1', completion 'bb'"):
        score(WeightedReward(picky, "f", timeout=timeout))
    scores = score(WeightedReward(picky, "f", timeout=timeout, on_error="none"))
    assert scores.components["f"][0::2] == [1.0, 3.0] and math.isnan(scores.components["f"][1])
    assert scores.outcomes["f"] == {"value": 2, "error": 1} and "sample 1" in scores.errors[0]
    assert score(WeightedReward(picky, "f", timeout=timeout, on_error="zero")).components["f"] == [1.0, 0.0, 3.0]


def test_a_raise_that_no_sample_repeats_alone_fails_the_batch(score):
    def only_together(completions):
        if len(completions) > 1:
            raise ValueError("too many")
        return [1.0]

    with pytest.raises(RewardError, match="too many on a batch of 3 samples"):
        score(WeightedReward(only_together, "f"))
    scores = score(WeightedReward(only_together, "f", on_error="none"))
    assert all(map(math.isnan, scores.components["f"])) and scores.outcomes["f"] == {"error": 3}


def test_async_functions_wait_together(score):
    gate = {"open": 0}

    async def meet(completions):
        gate["open"] += 1
        for _ in range(200):
            if gate["open"] == 2:
                return [1.0] * len(completions)
            await asyncio.sleep(0.001)
        return [0.0] * len(completions)

    async def meet_too(completions):
        return await meet(completions)

    scores = score(WeightedReward(meet, "a"), WeightedReward(meet_too, "b"))
    assert scores.components == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_async_failures_follow_the_policy_and_loops_may_be_running(score):
    async def picky_async(completions):
        return picky(completions)

    async def notebook():
        return score(WeightedReward(picky_async, "f", on_error="zero"))

    assert asyncio.run(notebook()).components["f"] == [1.0, 0.0, 3.0]
    assert score(WeightedReward(picky_async, "f", timeout=30.0, on_error="zero")).components["f"] == [1.0, 0.0, 3.0]


def test_a_hang_is_a_timeout_and_the_next_call_works(score):
    def hangs_on_bb(completion, row):
        while completion == "bb":
            pass
        return True

    began = time.monotonic()
    scores = score(WeightedReward(hangs_on_bb, "f", timeout=0.3, on_error="none", per_sample=True))
    assert scores.components["f"][0::2] == [1.0, 1.0] and math.isnan(scores.components["f"][1])
    assert (
        scores.outcomes["f"] == {"value": 2, "timeout": 1} and "timed out after 0.3 s on sample 1" in scores.errors[0]
    )
    assert time.monotonic() - began < 20
    with pytest.raises(RewardError, match=r"timed out after 0\.3 s on sample 1"):
        score(WeightedReward(hangs_on_bb, "f", timeout=0.3, per_sample=True))


def test_a_batch_that_hangs_times_out_as_a_whole(score):
    def hangs(completions):
        time.sleep(60)

    scores = score(WeightedReward(hangs, "f", timeout=0.2, on_error="zero"))
    assert scores.components["f"] == [0.0] * 3 and scores.outcomes["f"] == {"timeout": 3}
    assert "a batch of 3 samples" in scores.errors[0]


def test_a_process_that_dies_is_an_error_with_its_exit_code(score):
    def dies_on_bb(completion, row):
        if completion == "bb":
            os._exit(7)
        return 1.0

    scores = score(WeightedReward(dies_on_bb, "f", timeout=30.0, on_error="none", per_sample=True))
    assert scores.outcomes["f"] == {"value": 2, "error": 1} and "exit code 7" in scores.errors[0]


def test_closures_printing_and_files_reach_the_process(score, tmp_path):
    (tmp_path / "mine.py").write_text(
        "SCALE = 2\n\nclass Scorer:\n    def __call__(self, completions, **columns):\n"
        "        return [SCALE * len(c) for c in completions]\n\nscorer = Scorer()\n\n"
        "def make():\n    def inner(completions):\n        return scorer(completions)\n    return inner\n\n"
        "closure = make()\n"
    )
    bonus = 10.0

    def noisy(completions):
        print("to the terminal, not into the answer")
        return [len(c) + bonus for c in completions]

    named = [resolve(f"{tmp_path / 'mine.py'}:{n}") for n in ("scorer", "closure")]
    scores = score(
        WeightedReward(noisy, "noisy", timeout=30.0),
        *(WeightedReward(f, str(i), timeout=30.0) for i, f in enumerate(named)),
    )
    assert scores.components == {"noisy": [11.0, 12.0, 13.0], "0": [2.0, 4.0, 6.0], "1": [2.0, 4.0, 6.0]}


def test_what_cannot_travel_is_refused_with_the_mend(score):
    lock = threading.Lock()

    def holds_a_generator(completions, state=(x for x in [lock])):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"cannot be sent to another process(.|\n)*leave its timeout out"):
        score(WeightedReward(holds_a_generator, "f", timeout=1.0))


def test_what_cannot_be_loaded_there_is_fatal_under_every_policy(score):
    class Fragile:
        def __call__(self, completions):
            return [0.0] * len(completions)

        def __setstate__(self, state):
            raise OSError("no such model")

        def __getstate__(self):
            return {"x": 1}

    with pytest.raises(RewardError, match="cannot be loaded in a process of its own: OSError: no such model"):
        score(WeightedReward(Fragile(), "f", timeout=5.0, on_error="none"))


def test_close_ends_the_process_and_what_it_started():
    def pids(completions):
        child = subprocess.Popen(["sleep", "60"])
        return [float(os.getpid()), float(child.pid)]

    runner = RewardRunner([WeightedReward(pids, "f", timeout=30.0)])
    found = runner.score(["p", "q"], ["a", "b"], [{}, {}], [[], []]).components["f"]
    runner.close()
    for pid in map(int, found):
        for _ in range(100):
            if not _alive(pid):
                break
            time.sleep(0.02)
        assert not _alive(pid)
    assert runner.score(["p", "q"], ["a", "b"], [{}, {}], [[], []]).components["f"] != found
    runner.close()


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_function_that_exits_is_an_error_and_ends_no_run(score, timeout):
    def leaves(completions):
        sys.exit(0)

    async def leaves_async(completions):
        sys.exit(0)

    for fn in (leaves, leaves_async):
        with pytest.raises(RewardError, match="raised SystemExit: 0 on sample 0"):
            score(WeightedReward(fn, "f", timeout=timeout))
        scores = score(WeightedReward(fn, "f", timeout=timeout, on_error="none"))
        assert scores.outcomes["f"] == {"error": 3}


def test_a_grader_has_nothing_to_read(score):
    def reads(completions):
        child = subprocess.run(["cat"], capture_output=True, check=True)
        return [float(len(child.stdout) + len(sys.stdin.read()))] * len(completions)

    scores = score(WeightedReward(reads, "f", timeout=10.0, on_error="none"))
    assert scores.components["f"] == [0.0] * 3 and scores.outcomes["f"] == {"value": 3}


def test_a_hung_grader_ends_when_its_parent_was_killed(tmp_path):
    """Even one that holds the GIL, as a regular expression does."""
    note, program = tmp_path / "pid", tmp_path / "train.py"
    program.write_text(
        "from coterie.rewards.functions import WeightedReward\nfrom coterie.rewards.runner import RewardRunner\n"
        "def f(completions):\n    import os, re, pathlib\n"
        f"    note = pathlib.Path({str(note)!r})\n"
        "    note.with_suffix('.new').write_text(str(os.getpid()))\n    note.with_suffix('.new').rename(note)\n"
        "    re.match('(a+)+$', 'a' * 60 + 'b')\n"
        "RewardRunner([WeightedReward(f, 'f', timeout=1.0)]).score(['p'], ['a'], [{}], [[]])\n"
    )
    parent = subprocess.Popen([sys.executable, str(program)])
    try:
        assert _within(20.0, note.exists)
    finally:
        parent.kill()
        parent.wait()
    grader = int(note.read_text())
    try:
        assert _within(10.0, lambda: not _alive(grader))
    finally:
        if _alive(grader):
            os.kill(grader, 9)


def _within(seconds, happened):
    """Whether it happens in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return True
        time.sleep(0.02)
    return False


def test_a_refused_function_leaves_no_other_unawaited(score):
    async def fine(completions):
        return [1.0] * len(completions)

    async def wants_more(completions, nope):
        return [1.0] * len(completions)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(RewardError, match="takes 'nope'"):
            score(WeightedReward(fine, "a"), WeightedReward(wants_more, "b"))
        gc.collect()
    assert not [w for w in seen if "never awaited" in str(w.message)]


def test_a_long_exception_is_cut(score):
    def long(completions):
        raise ValueError("x" * 100_000)

    (error,) = score(WeightedReward(long, "f", on_error="none")).errors
    assert "raised ValueError: xxx" in error and len(error) < 1000


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_workers_module_is_light():
    loaded = "sorted(m for m in sys.modules if m.startswith(('torch', 'coterie')))"
    code = f"import sys, coterie.rewards.worker; print({loaded})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['coterie', 'coterie.errors', 'coterie.rewards', 'coterie.rewards.worker']"


def test_an_empty_batch_is_scored(score):
    assert score(WeightedReward(lengths, "f"), texts=[]).components == {"f": []}
