"""Models and data written to disk, so that both sides of a comparison load the very same files."""

from __future__ import annotations

import itertools
import json
import random
import string
from pathlib import Path
from typing import Any

from bench.environments import SCRATCH

SIZES: dict[str, dict[str, int]] = {
    "4M": {"layers": 4, "width": 256, "heads": 4, "kv_heads": 2},
    "100M": {"layers": 12, "width": 768, "heads": 12, "kv_heads": 4},
}
"""Qwen3-style shapes (grouped queries, q/k norms, SwiGLU of 4 × width); parameters without embeddings."""
LETTERS = string.digits + string.ascii_letters


def model_folder(size: str, context: int, vocabulary: int | None = None) -> Path:
    """A randomly initialised model of that size with a character tokenizer. `vocabulary`: how many characters."""
    from coterie.policies.tiny import CHARACTERS, TinySpec, build

    folder = SCRATCH / "models" / f"{size}-{context}-{vocabulary or 'plain'}"
    if not (folder / "config.json").exists():
        extra = {} if vocabulary is None else {"vocabulary": characters(vocabulary)}
        spec = TinySpec(family="qwen3", context=context, **{"vocabulary": CHARACTERS, **SIZES[size], **extra})
        model, tokenizer = build(spec, 0)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def characters(count: int) -> str:
    """`count` different characters, digits and letters first, then CJK and on, without the surrogates."""
    beyond = (chr(i) for i in itertools.count(0x4E00) if not 0xD800 <= i < 0xE000)
    return LETTERS[:count] + "".join(itertools.islice(beyond, max(0, count - len(LETTERS))))


def prompt_file(tokens: int, rows: int = 256) -> Path:
    """Prompts of exactly `tokens` tokens, the tokenizer's <bos> included."""
    path = SCRATCH / f"prompts-{tokens}-{rows}.jsonl"
    if not path.exists():
        rng = random.Random(tokens)
        texts = ["".join(rng.choice(LETTERS) for _ in range(tokens - 1)) for _ in range(rows)]
        write_rows(path, [{"prompt": text} for text in texts])
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def step_config(size: str, prompt: int, completion: int, prompts: int, group: int, threads: int, **more: Any) -> dict:
    """What both workers need for GRPO steps of one shape. EOS is never sampled, so every completion is full length."""
    vocabulary = more.pop("vocabulary", None)
    return {
        "model": str(model_folder(size, 2048, vocabulary)), "data": str(prompt_file(prompt)), "reward": "digit_share",
        "prompts": prompts, "group_size": group, "max_tokens": completion, "ignore_eos": True, "lr": 1e-6,
        "dtype": "float32", "threads": threads, **more,
    }  # fmt: skip
