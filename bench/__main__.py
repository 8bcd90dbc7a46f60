"""`python -m bench`: run the benches (all, or those named), print their tables, write bench/results/.

python -m bench                     all of them: hours on two cores
python -m bench step prefix         these two
python -m bench --quick             fewer repetitions and no 100M-parameter model
python -m bench step --only 256:64  only the settings whose name contains a word
python -m bench --into some/folder  results of another machine beside those in bench/results
"""

from __future__ import annotations

import argparse
import importlib
import os
from dataclasses import dataclass
from pathlib import Path

from bench import BenchError
from bench.results import RESULTS, check, machine, write

BENCHES = {
    "logprob_memory": "peak memory of log-prob and entropy at a vocabulary of 151k",
    "vocabulary_memory": "peak memory of a step at a vocabulary of 151k against TRL",
    "gemm": "share of the machine's matrix-product rate in training and decode",
    "sampling": "drawing a token a row against transformers, with and without cuts",
    "compile_decode": "decoding with compiled layers against decoding without",
    "overhead": "share of a step outside model compute",
    "optimizers": "state and step of each optimizer against AdamW",
    "credit": "the credit stage of every method against a step",
    "prefix": "the shared-prefix forward on and off",
    "step": "a GRPO step against TRL",
    "stability": "objectives on batches that are up to 64 updates late",
    "growth": "step time against prompts, group size, length and vocabulary",
    "keep": "the update's first forward with and without the products that generation kept",
    "agents": "held-out success in worlds of many turns; GiGPO against GRPO, M-GRPO",
    "apart": "a main agent and its sub-agents in runs of their own against one process",
    "sandbox": "programs a second through the sandbox, and HumanEval's solutions",
    "flow_time": "MixGRPO and BranchGRPO against Flow-GRPO at equal held-out reward",
    "scale_sim": "steps at 8 to 4,096 GPUs, simulated, and the simulator against measured calls here",
    "demos": "held-out accuracy of the demos of flow and masked diffusion, over seeds",
    "mutual": "two sides that reward each other (UniRL, Unified-GRPO), held-out reward over seeds",
    "pipelines": "GRPO on a tiny pipeline of diffusers, adapters and whole denoiser",
    "scale": "the Ray engine: what it costs a step, weight sync, and running ahead",
    "demo_vs_trl": "time to 80% held-out accuracy against TRL",
}


@dataclass(frozen=True)
class Options:
    quick: bool
    threads: int
    runs: int | None
    only: str

    def runs_or(self, full: int, quick: int) -> int:
        return self.runs or (quick if self.quick else full)

    def wants(self, setting: str) -> bool:
        return self.only in setting


def main() -> None:
    listing = "\n".join(f"  {name:16}{what}" for name, what in BENCHES.items())
    parser = argparse.ArgumentParser(
        "python -m bench", description=listing, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="bench")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no 100M-parameter model")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads, on both sides")
    parser.add_argument("--runs", type=int, help="interleaved repetitions instead of each bench's own number")
    parser.add_argument("--only", default="", help="only settings whose name contains this")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench '{unknown[0]}'; there are: {', '.join(BENCHES)}")
    options = Options(args.quick, args.threads, args.runs, args.only)
    failed = False
    for name in args.names or BENCHES:
        where = machine() | {"threads": options.threads}
        try:
            if part := bool(options.only):
                check(name, where, args.into)
            found = importlib.import_module(f"bench.{name}").run(options)
            write(name, found, where, part=part, folder=args.into)
        except BenchError as error:
            failed = True
            print(f"{name}: {error}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
