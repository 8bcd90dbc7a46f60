"""Peak memory of log-prob and entropy, forward and backward: in chunks against a plain float32 log_softmax of [N,V].

Each measurement is a new process, `python -m bench.logprob_memory HOW N H V FROZEN`, that prints the MiB by which its
peak resident memory rose above what hidden states, head and their zeroed gradients take.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from typing import Any

from bench.results import Figure, Findings, spread

ROWS, WIDTH = 2048, 256
WAYS = ("plain", "chunked")


def run(options: Any) -> Findings:
    found, runs = Findings(), options.runs_or(3, 1)
    found.notes.append(
        f"N = {ROWS} decisions, width {WIDTH}, float32; peak above the inputs and their gradients. "
        "trained: the head takes a gradient, whose accumulation needs one more [V,H]; frozen: it does not (LoRA)"
    )
    for vocabulary, head in ((151_936, "trained"), (151_936, "frozen"), (32_768, "frozen")):
        peaks: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(runs):
            for way in WAYS:
                peaks[way].append(_child(way, vocabulary, head, options.threads))
        plain, chunked = (statistics.median(peaks[way]) for way in WAYS)
        found.rows.append(
            {
                "vocabulary": vocabulary,
                "head": head,
                "plain MiB": plain,
                "chunked MiB": chunked,
                "ratio": plain / chunked,
            }
        )
        found.detail[f"{vocabulary} {head}"] = {way: spread(values) for way, values in peaks.items()}
        if vocabulary > 100_000:
            name = f"log-prob and entropy, peak memory, vocabulary 151k, head {head}"
            found.figures.append(Figure(name, plain / chunked, 8.0, runs))
    return found


def _child(way: str, vocabulary: int, head: str, threads: int) -> float:
    command = [sys.executable, "-m", "bench.logprob_memory", way, str(ROWS), str(WIDTH), str(vocabulary), head]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


def measure(way: str, rows: int, width: int, vocabulary: int, head: str) -> float:
    import torch

    from coterie.policies.logprobs import score_linear
    from coterie.rollouts import Sampling

    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocabulary, width) / width**0.5, requires_grad=head == "trained")
    tokens = torch.randint(vocabulary, (rows,))
    for leaf in (hidden, weight):
        leaf.grad = torch.zeros_like(leaf) if leaf.requires_grad else None
    # Libraries that load on the first multiplication are not what is measured.
    (hidden[:2].detach() @ weight[:8].detach().T).log_softmax(-1).sum()
    before = _peak()
    if way == "chunked":
        out = score_linear(hidden, weight, tokens, Sampling(), ("logp", "entropy"))
        loss = out["logp"].sum() + 0.01 * out["entropy"].sum()
    else:
        logp = torch.log_softmax((hidden @ weight.T).float(), -1)
        loss = logp.gather(-1, tokens.unsqueeze(-1)).sum() - 0.01 * (logp.exp() * logp).sum()
    loss.backward()
    return _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    print(measure(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]))  # type: ignore[arg-type]
