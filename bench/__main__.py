"""`python -m bench`: where the time of the demo's step goes, and what chunked log-probs save in memory.

Prints tables and writes bench/results/*.json with the machine, versions and command.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
VOCABULARY, WIDTH, DECISIONS = 151_936, 256, 2_048

MEMORY = """
import resource, sys, torch
from coterie.policies.logprobs import rows_per_chunk, score_hidden
from coterie.rollouts import Sampling
vocabulary, width, n, how = *map(int, sys.argv[1:4]), sys.argv[4]
torch.manual_seed(0)
head = torch.nn.Linear(width, vocabulary, bias=False)
hidden = torch.randn(n, width, requires_grad=True)
tokens = torch.randint(vocabulary, (n,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if how == "chunked":
    out = score_hidden(hidden, head, tokens, Sampling(), ("logp", "entropy"), rows_per_chunk(vocabulary, hidden.device))
    loss = out["logp"].sum() + out["entropy"].sum()
elif how == "plain":
    logp = head(hidden).log_softmax(-1)
    loss = logp.gather(-1, tokens[:, None]).sum() - (logp.exp() * logp).sum()
else:
    raise SystemExit(how)
loss.backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def step(steps: int = 30) -> dict[str, Any]:
    """Medians of the demo's phases over `steps` steps, in seconds."""
    from coterie.api import start
    from coterie.cli.demo import RECIPE
    from coterie.recipe import resolve

    overrides = [f"steps={steps}", "evaluation.prompts=32", "checkpoint.every=0", "log.rollouts_every=0"]
    with tempfile.TemporaryDirectory() as folder:
        rows = start(resolve(file=RECIPE, overrides=overrides), Path(folder) / "run", quiet=True).metrics[5:]
    phases = ("time/generate", "time/score", "time/learn", "time/step", "tokens/per_second")
    return {"steps": len(rows), **{p: statistics.median(r[p] for r in rows if "time/eval" not in r) for p in phases}}


def logprob_memory(runs: int = 3) -> dict[str, Any]:
    """Peak memory (MiB) above the inputs of log-probs and entropies, forward and backward, each in a new process."""
    taken: dict[str, list[float]] = {"plain": [], "chunked": []}
    for _ in range(runs):
        for how, values in taken.items():
            sizes = [str(VOCABULARY), str(WIDTH), str(DECISIONS)]
            done = subprocess.run(
                [sys.executable, "-c", MEMORY, *sizes, how], capture_output=True, text=True, check=True
            )
            values.append(float(done.stdout))
    medians = {how: statistics.median(values) for how, values in taken.items()}
    return {**medians, "ratio": medians["plain"] / medians["chunked"], "runs": runs, "decisions": DECISIONS,
            "vocabulary": VOCABULARY, "width": WIDTH}  # fmt: skip


BENCHES = {"step": step, "logprob_memory": logprob_memory}


def main() -> None:
    import torch
    import transformers

    names = sys.argv[1:] or list(BENCHES)
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        if name not in BENCHES:
            raise SystemExit(f"no bench '{name}'; there are: {', '.join(BENCHES)}")
        found = BENCHES[name]()
        machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(),
                   "load_before": os.getloadavg()[1], "torch": torch.__version__,
                   "transformers": transformers.__version__, "threads": torch.get_num_threads()}  # fmt: skip
        machine["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\n{name}")
        for key, value in found.items():
            print(f"  {key:20} {value:.4g}" if isinstance(value, float) else f"  {key:20} {value}")
        record = {"name": name, "command": f"python -m bench {name}", "machine": machine, "result": found}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
