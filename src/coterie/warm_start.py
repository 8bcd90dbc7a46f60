"""SFT on a task's reference completions, or on the actions of its script in its world, until sampled accuracy says
that there is something to reinforce."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from coterie.environments.scripted import line_of, lines_of
from coterie.errors import RecipeError
from coterie.evaluator import accuracy
from coterie.optim.master import optimize
from coterie.policies.base import Part
from coterie.policies.causal_lm import CausalLM
from coterie.run import Run
from coterie.streams import stream


def warm_start(run: Run, note: Callable[[str], None]) -> dict[str, float]:
    """Train on reference completions, or on the script's episodes, for at most warm_start.steps, stopping at
    warm_start.stop_at sampled accuracy.

    Accuracy is measured on training prompts at the rollouts' temperature: a greedy stop leaves nothing to sample. Of
    several policies each that is trained imitates its own part; all stop together, by the lowest accuracy. What is
    taught in another run is received.
    """
    spec = run.settings.warm_start
    if spec.steps == 0:
        return {}
    taught = [run] if run.stage is None else run.stage.taught
    if run.stage is not None and not taught:
        run.stage.receive()
        return {}
    if run.task.reference is None and run.task.script is None:
        lacks = "reference completions" if run.task.world is None else "script"
        raise RecipeError(f"task '{run.task.name}' has no {lacks} to warm-start on", hint="warm_start.steps=0")
    if spec.stop_at is not None and not run.task.judges:
        raise RecipeError("warm_start.stop_at needs a task with a verifier", hint="leave stop_at out")
    students = [sft_steps(agent, spec.lr, spec.batch) for agent in taught]
    loss, reached, done = float("nan"), None, 0
    for done in range(1, spec.steps + 1):
        loss = sum(sft(done) for sft in students) / len(students)
        if spec.stop_at is not None and done % spec.check_every == 0:
            held_out = run.recorded is not None
            reached = accuracy(run.acting, run.task, run.settings, run.workers, held_out=held_out, key=done)
            note(f"warm start {done}/{spec.steps}  loss {loss:.3f}  sampled accuracy {reached:.1%}")
            if reached >= spec.stop_at:
                break
    out = {"warm_start/steps": float(done), "warm_start/loss": loss}
    return out if reached is None else out | {"warm_start/accuracy": reached}


def sft_steps(run: Run, lr: float, batch: int) -> Callable[[int], float]:
    """A function that takes SFT step number n and returns its loss. Each of several workers has its share of the batch;
    with dropout, noise of its own.
    """
    parameters = run.policy.trainable_parameters()
    optimizer = optimize(parameters, lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0))

    @functools.cache
    def lines(index: int) -> list[tuple[tuple[int, ...], list[int], list[bool]]]:
        """The script's episode of a row, played once: prompt, tokens and which are actions, of each line."""
        policy, task, row = run.policy, run.task, run.task.train[index]
        assert task.world is not None and task.script is not None and isinstance(policy, CausalLM)  # only it plays
        if task.world.agents:
            made = lines_of(policy, task.world, row, task.script, run.name)
        else:
            made = [(row, *line_of(policy, task.world, row, task.script))]
        return [(policy.encode(own["prompt"]), tokens, decided) for own, tokens, decided in made]

    def step(number: int) -> float:
        rng = np.random.default_rng(stream(run.settings.seed, "sft", number))
        chosen = [int(i) for i in rng.integers(len(run.task.train), size=batch)]
        share = run.workers.share(batch)
        loss = share_of_loss(chosen[share], Part(share.start, total), stream(run.settings.seed, "sft-noise", number))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.workers.sum_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.policy.version += 1
        return float(run.workers.sum(loss.detach()))

    def total(count: int) -> int:
        return int(run.workers.sum(torch.tensor(count)))

    def share_of_loss(chosen: list[int], part: Part, noise: int) -> torch.Tensor:
        if not chosen:  # fewer examples than workers
            part.total(0)
            return torch.zeros((), requires_grad=True)
        if run.task.script is not None:
            assert isinstance(run.policy, CausalLM)  # only it plays in worlds
            shown = [line for i in chosen for line in lines(i)]
            prompts, tokens = [p for p, _, _ in shown], [t for _, t, _ in shown]
            return run.policy.sft_loss(prompts, tokens, noise, part, [d for _, _, d in shown])
        assert run.task.reference is not None
        rows = [run.task.train[i] for i in chosen]
        prompts = run.policy.encode_all([r["prompt"] for r in rows])
        completions = [run.policy.encode_completion(run.task.reference(r)) for r in rows]
        return run.policy.sft_loss(prompts, completions, noise, part=part)

    return step
