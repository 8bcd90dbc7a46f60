"""Coterie's side: the loop itself, which stops before each step until the bench asks for it.

python bench/ours_step.py '{"model": …, "data": …}'      (see bench/workload.step_config)
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from bench.protocol import Channel, columns, forget_peak, peak_mib, read_rows
from bench.rewards import REWARDS


class Paced:
    """Takes the reporter's place: answers with the seconds of the step that ended, then waits for the next."""

    stopping = False

    def __init__(self, channel: Channel, config: dict[str, Any]) -> None:
        self.channel, self.config = channel, config
        self.began = time.perf_counter()

    def step(self, run: Any, batch: Any, clock: Any) -> None:
        seconds = time.perf_counter() - self.began
        if batch is None:
            import torch

            parameters = sum(p.numel() for p in run.policy.trainable_parameters())
            forget_peak()
            self.channel.reply(torch=torch.__version__, parameters=parameters, threads=torch.get_num_threads(),
                               peak_mib=peak_mib())  # fmt: skip
        else:
            prompt = sum(len(p.tokens) for p in batch.prompts) / len(batch.prompts)
            phases = {p: clock.seconds.get(p, 0.0) for p in ("generate", "score", "learn")}
            length = float(batch["lengths"].float().mean())
            reward = float(run.seen["rewards"].mean())
            self.channel.reply(
                seconds=seconds, prompt=prompt, completion=length, reward=reward, peak_mib=peak_mib(), **phases
            )
        while self.channel.wait() == "eval":
            self.channel.reply(accuracy=evaluate(run, self.config))
        self.began = time.perf_counter()

    def checkpoint(self, run: Any) -> None: ...

    def note(self, text: str) -> None: ...


def evaluate(run: Any, config: dict[str, Any]) -> float:
    """Mean reward of sampled completions of the held-out prompts."""
    from coterie.evaluator import complete
    from coterie.rollouts import Sampling

    rows = read_rows(config["held_out"])
    samples = config["eval_samples"]
    made = complete(run.policy, rows, Sampling(max_tokens=config["max_tokens"]), samples, run.step, "bench")
    marks = REWARDS[config["reward"]](made.texts, **columns(rows, samples))
    return sum(marks) / len(marks)


def main(config: dict[str, Any]) -> None:
    channel = Channel()
    from coterie.build import build
    from coterie.hardware import use_threads
    from coterie.loop import train
    from coterie.recipe import resolve

    values: dict[str, Any] = {
        "model": {"name": config["model"], "dtype": config["dtype"], **config.get("model_options", {})},
        "task": {"jsonl": {"path": config["data"], "held_out": 1}},
        "steps": 10**6,
        "threads": config["threads"],
        "seed": config.get("seed", 0),
        "draw.prompts": config["prompts"],
        "rollout.group_size": config["group_size"],
        "rollout.max_tokens": config["max_tokens"],
        "optimizer": {"adamw": {"lr": config["lr"]}},
        "checkpoint.every": 0,
        **config.get("settings", {}),
    }
    recipe = resolve(method="grpo", values=values, functions=[REWARDS[config["reward"]]])
    use_threads(recipe.settings.threads)
    run = build(recipe)
    if config["ignore_eos"]:
        run.policy.engine.forbid = run.policy.engine.stop_ids
    train(run, Paced(channel, config))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
