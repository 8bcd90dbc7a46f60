"""`coterie doctor`: is everything here, and do sampler and trainer agree?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import typer
from rich.markup import escape

from coterie.cli.output import console, print_json, table
from coterie.errors import SandboxError

CORE = ("torch", "transformers", "datasets", "pydantic", "safetensors", "pyarrow", "matplotlib", "math-verify")
EXTRAS = {
    "peft": "peft",
    "sklearn": "flow",
    "diffusers": "diffusers",
    "gymnasium": "agents",
    "bm25s": "agents",
    "playwright": "web",
    "ray": "scale",
    "vllm": "vllm",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
}
"""Module -> the extra that brings it."""


def examine(model: str | None, as_json: bool) -> None:
    """Print a check a line; exit 1 when something needed is missing or log-probs disagree."""
    checks = [*_environment(), *_agreement(model)]
    if as_json:
        print_json([{"check": n, "ok": ok, "detail": d} for n, ok, d in checks])
    else:
        out = table("", "check", "")
        for name, ok, detail in checks:
            out.add_row({True: "ok", False: "FAIL", None: "-"}[ok], name, escape(detail))
        console.print(out)
    if any(ok is False for _, ok, _ in checks):
        raise typer.Exit(1)


def _environment() -> list[tuple[str, bool | None, str]]:
    import torch

    from coterie import native

    checks: list[tuple[str, bool | None, str]] = [("python", True, platform.python_version())]
    for name in CORE:
        found = importlib.util.find_spec(name.replace("-", "_")) is not None
        checks.append((name, found, importlib.metadata.version(name) if found else f"pip install {name}"))
    for name, extra in EXTRAS.items():
        found = importlib.util.find_spec(name) is not None
        checks.append((name, True if found else None, "" if found else f"optional: pip install 'coterie[{extra}]'"))
    gpus = torch.cuda.device_count()
    checks.append(
        ("devices", True, f"{gpus} CUDA, {os.cpu_count()} CPU cores, {torch.get_num_threads()} torch threads")
    )
    missing = native.missing()
    told = "built" if missing is None else f"torch computes instead, slower on a CPU: {missing}"
    checks.append(("compiled functions", True if missing is None else None, told))
    checks.append(("sandbox", *_sandbox()))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    checks.append(("disk", free > 2, f"{free:.1f} GiB free here"))
    return checks


def _sandbox() -> tuple[bool | None, str]:
    """Whether programs that a model wrote can be run here; only tasks that run them need it."""
    from coterie.sandbox.sandbox import detect

    try:
        return True, detect()
    except SandboxError as error:
        return None, error.message


def _agreement(model: str | None) -> list[tuple[str, bool | None, str]]:
    """Sample a few tokens, score them with the trainer's forward, and compare."""
    import torch

    from coterie.policies.causal_lm import CausalLM
    from coterie.policies.loading import ModelSpec
    from coterie.policies.tiny import TinySpec
    from coterie.rollouts import Prompt, Sampling

    spec = ModelSpec(name=model) if model else ModelSpec(init=TinySpec.model_validate({}))
    policy = CausalLM.load(spec)
    usable = sorted(set(range(len(policy.tokenizer))) - set(policy.tokenizer.all_special_ids))
    prompts = [Prompt(tuple(usable[i % len(usable)] for i in range(7, 7 * n, 7))) for n in (4, 12)]
    out: list[tuple[str, bool | None, str]] = []
    for sampling in (Sampling(max_tokens=16), Sampling(temperature=0.7, top_p=0.9, max_tokens=16)):
        rollouts = policy.rollout(prompts, [[1, 2], [3, 4]], sampling)
        with torch.no_grad():
            gap = (policy.score(rollouts)["logp"] - rollouts["logp_old"]).abs().max()
        name = f"sampler = trainer (T={sampling.temperature}, top_p={sampling.top_p})"
        out.append((name, bool(gap <= policy.tolerance), f"largest log-prob difference {float(gap):.2g}"))
    return out
