"""Linear merges of saved models: Balanced Actor Initialization (arXiv:2509.00309) and what else mixes weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from coterie.errors import PolicyError
from coterie.policies.loading import ModelSpec, load_model_and_tokenizer


@torch.no_grad()
def merge(names: Sequence[str], ratios: Sequence[float], folder: str | Path) -> int:
    """Merge models one after the other, ratio * what there is + (1 - ratio) * the next, and save the result.

    names: folders or hub ids, at least two, of one architecture and vocabulary. ratios: one for each model after the
    first, each in 0..1. Sums are float32 (float64 for such models), the result has the first model's dtype, tokenizer
    and buffers; tied weights are merged once, adapters are folded in first. Two models are in memory at a time. Returns
    the number of parameters merged. Raises PolicyError, before anything is written, for models that do not match.
    """
    if len(names) < 2 or len(ratios) != len(names) - 1:
        raise PolicyError(
            f"{len(names)} models take {max(len(names) - 1, 1)} ratios, got {len(ratios)}",
            where="merge",
            hint="coterie merge A B C --ratio 0.5 --ratio 0.8: 0.8 (0.5 A + 0.5 B) + 0.2 C",
        )
    for ratio in ratios:
        if not 0.0 <= ratio <= 1.0:
            raise PolicyError(f"the ratio {ratio:g} is not in 0..1", where="merge")
    model, tokenizer = _load(names[0])
    own = dict(model.named_parameters())
    merged = {n: p.to(torch.promote_types(p.dtype, torch.float32), copy=True) for n, p in own.items()}
    for name, ratio in zip(names[1:], ratios, strict=True):
        other, spelling = _load(name)
        _check(own, dict(other.named_parameters()), names[0], name)
        if tokenizer.get_vocab() != spelling.get_vocab():
            raise PolicyError(
                f"its tokenizer is not that of {names[0]}", where=name, hint="merge models of one family only"
            )
        for n, p in other.named_parameters():
            merged[n].mul_(ratio).add_(p.to(merged[n].dtype), alpha=1.0 - ratio)
    for n, p in own.items():
        p.copy_(merged[n])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in own.values())


def _load(name: str) -> tuple[Any, Any]:
    model, tokenizer = load_model_and_tokenizer(ModelSpec(name=name, dtype="auto", device="cpu"))
    return (model.merge_and_unload() if hasattr(model, "get_base_model") else model), tokenizer


def _check(own: dict[str, torch.Tensor], other: dict[str, torch.Tensor], first: str, name: str) -> None:
    """Raise PolicyError unless both have the same parameters."""
    wrong = sorted(own.keys() ^ other.keys()) or sorted(n for n in own if own[n].shape != other[n].shape)
    if wrong:
        raise PolicyError(
            f"its weights are not those of {first}: {len(wrong)} differ in name or shape, first {wrong[0]}",
            where=name,
            hint="merge models of one architecture and size, trained from the same one",
        )
