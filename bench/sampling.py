"""Drawing a token a row, with its log-prob: ours, ours without a compiler, and what transformers' generate does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from bench.results import Figure, Findings, spread

ROWS = 64
CUTS: dict[str, dict[str, Any]] = {
    "all": {}, "top-p 0.95": {"top_p": 0.95}, "top-k 20, top-p 0.95": {"top_k": 20, "top_p": 0.95},
}  # fmt: skip


def run(options: Any) -> Findings:
    import torch

    from coterie.rollouts import Sampling

    torch.set_num_threads(options.threads)
    found, runs = Findings(), options.runs_or(21, 5)
    for vocabulary in (4096, 151_936):
        for name, cuts in CUTS.items():
            setting = f"{ROWS} rows of {vocabulary}, {name}"
            if not options.wants(setting):
                continue
            logits = torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
            sides = _sides(logits, Sampling(temperature=0.9, **cuts))
            times: dict[str, list[float]] = {side: [] for side in sides}
            with torch.inference_mode():
                for number in range(runs + 1):
                    for side, call in sides.items():
                        began = time.perf_counter()
                        call()
                        if number:  # the first warms up
                            times[side].append(time.perf_counter() - began)
            medians = {side: statistics.median(some) for side, some in times.items()}
            found.rows.append({"setting": setting, **{f"{side} ms": 1e3 * t for side, t in medians.items()}})
            found.detail[setting] = {side: spread(some) for side, some in times.items()}
            for other in ("transformers", "without compiler"):
                ratio = statistics.median(a / b for a, b in zip(times[other], times["ours"], strict=True))
                found.figures.append(Figure(f"a draw, {other} over ours, {setting}", ratio, None, runs))
    return found


def _sides(logits: Any, spec: Any) -> dict[str, Callable[[], Any]]:
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from coterie.native import cut, draw
    from coterie.rollout.engines import sampling

    steps: list[Any] = [TemperatureLogitsWarper(spec.temperature)]
    steps += [TopKLogitsWarper(spec.top_k)] if spec.top_k else []
    steps += [TopPLogitsWarper(spec.top_p)] if spec.top_p < 1.0 else []
    warp, ids = LogitsProcessorList(steps), torch.zeros(len(logits), 1, dtype=torch.int64)
    uniforms = sampling.uniform(torch.arange(len(logits)), 0)

    def theirs() -> Any:
        scores = warp(ids, logits)
        tokens = torch.multinomial(scores.softmax(-1), 1)
        return tokens, scores.log_softmax(-1).gather(-1, tokens)

    def plain() -> Any:
        none = partial(mock.patch.object, attribute="suits", new=lambda _: False)
        with none(draw), none(cut):
            return sampling.draw(logits, spec, uniforms)

    return {"transformers": theirs, "without compiler": plain, "ours": lambda: sampling.draw(logits, spec, uniforms)}
