"""Sampler against trainer: the log-prob a decision was sampled with, and the trainer's own before the update.

They differ where rollouts come from another engine or precision, or from older weights. `logp_old` is the sampler's;
`logp_train` is the trainer's, without gradient. Pieces that read `logp_train` correct the difference by weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from coterie.columns import finite_or_zero, per_decision
from coterie.metrics import record, record_range
from coterie.reductions import masked_mean, masked_sum

if TYPE_CHECKING:
    from coterie.recipe import Recipe

Level = Literal["token", "sequence", "geometric"]
LOG_LIMIT = 20.0
"""Log-ratios are limited to this size, so that an absurd decision gives a large finite ratio, never inf or NaN."""


def importance(logp_train: Tensor, logp_old: Tensor, mask: Tensor, level: Level) -> Tensor:
    """trainer's probability / sampler's: of each decision, of the rollout, or the geometric mean over it. [B,T]

    Detached; 1 where masked and, at the levels of the rollout, for one without decisions.
    """
    gap = finite_or_zero(logp_train.detach() - logp_old, mask)
    if level == "token":
        return gap.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    whole = masked_sum(gap, mask) if level == "sequence" else masked_mean(gap, mask)
    return torch.where(mask, per_decision(whole.clamp(-LOG_LIMIT, LOG_LIMIT).exp(), mask), torch.ones_like(gap))


def effective_share(weights: Tensor, mask: Tensor) -> float:
    """Effective sample size over the number of decisions, (sum w)^2 / (n sum w^2); 0 where no weight is left."""
    w = weights[mask].double()
    squares = float((w * w).sum())
    return float(w.sum()) ** 2 / (len(w) * squares) if squares > 0 else 0.0


def observe(logp_train: Tensor, logp_old: Tensor, weights: Tensor, mask: Tensor) -> None:
    """Record how far the sampler is from the trainer, over the decisions with weight. KL is of the sampler from the
    trainer, estimated on what it sampled.
    """
    live = mask & (per_decision(weights, mask) != 0)
    if not bool(live.any()):
        return
    gap = finite_or_zero(logp_train - logp_old, live)
    record("mismatch/mean_abs", gap.abs(), live)
    record("mismatch/k1", -gap, live)
    record("mismatch/k3", gap.clamp(max=LOG_LIMIT).exp() - 1 - gap, live)
    record_range("mismatch/ratio", gap.clamp(-LOG_LIMIT, LOG_LIMIT).exp(), live)
    record("mismatch/max_abs", float(gap.abs().max()))
    for name, logp in (("sampler", logp_old), ("trainer", logp_train)):
        record(f"mismatch/perplexity_{name}", float((-logp[live].double().mean()).clamp(max=LOG_LIMIT).exp()))


def samples_itself(recipe: Recipe) -> bool:
    """Whether what the recipe says of the model lets the trained weights themselves take the samples."""
    model = recipe.settings.model
    if not isinstance(model, dict):
        return True
    return model.get("engine") != "vllm" and model.get("sample_dtype") in (None, model.get("dtype", "float32"))


def correct(recipe: Recipe, exact: bool, late: bool = False) -> str | None:
    """Truncated importance weights, added where the engine's log-probs are not the trainer's, or rollouts may be made
    by older weights elsewhere (`late`: another run makes them), and the recipe has no correction of its own. Returns
    what to say of it.
    """
    ahead = late or recipe.settings.scale.max_staleness > 0
    if exact and not ahead:
        return None
    what = "rollouts may be of older weights" if ahead else "the engine's log-probs are not the trainer's"
    from coterie import registry, wiring

    if "logp_train" in wiring.wanted(recipe, "policy"):
        return None
    if not recipe.settings.update.correction:
        return f"{what}, and update.correction=false leaves that uncorrected"
    recipe.chain["selection.weights"].append(registry.get("selection", "truncated_importance").bind({}))
    return (
        f"{what}: decisions are weighted by truncated importance "
        "(selection.weights=truncated_importance; update.correction=false switches it off)"
    )
