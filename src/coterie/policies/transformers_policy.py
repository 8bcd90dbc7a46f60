"""What policies made of transformers models share: text in and out, weights in and out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.policies import tokenizers
from coterie.policies.state import copy_state, trainable
from coterie.rollouts import Rollouts


class TransformersPolicy:
    """A transformers model and its tokenizer: text in and out, weights in and out."""

    independent = False
    """Whether the score of a decision does not need the others' of its rollout."""

    def __init__(self, model: Any, tokenizer: Any, spec: Any) -> None:
        self.model, self.tokenizer, self.spec = model, tokenizer, spec
        self.version = 0

    @property
    def shares_prefix(self) -> bool:
        """Whether scoring encodes the prompt of a group once, however many rollouts answer it."""
        return False

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def has_adapters(self) -> bool:
        return hasattr(self.model, "get_base_model")

    @property
    def tolerance(self) -> float:
        """The most by which a captured log-prob may differ from a recomputed one by rounding alone."""
        return 1e-3 if self.model.dtype in (torch.float32, torch.float64) else 0.5

    # Text

    def encode(self, prompt: str | Sequence[tokenizers.Message]) -> tuple[int, ...]:
        """Token ids of a prompt, plain or conversational (see `tokenizers.encode`)."""
        return tokenizers.encode(self.tokenizer, prompt, self.spec.system)

    def encode_all(self, prompts: Sequence[str | Sequence[tokenizers.Message]]) -> list[tuple[int, ...]]:
        """Token ids of some prompts, each as `encode` gives them."""
        return tokenizers.encode_all(self.tokenizer, prompts, self.spec.system)

    @cached_property
    def vocabulary(self) -> str:
        """A short digest of the tokenizer's vocabulary: recorded token ids mean the same where it is the same."""
        return tokenizers.digest(self.tokenizer)

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Token ids of a completion's text, without special tokens (an SFT target; EOS is added by `sft_loss`)."""
        return tokenizers.encode_completion(self.tokenizer, text)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Each token's own text, for people to look at."""
        return tokenizers.spell(self.tokenizer, [[i] for i in ids], skip_special_tokens=False)

    def decision_texts(self, rollouts: Rollouts) -> list[list[str]]:
        """The text of each token that was chosen."""
        rows = zip(rollouts["tokens"].cpu(), rollouts["mask"].cpu(), strict=True)
        return [self.token_texts(tokens[mask].tolist()) for tokens, mask in rows]

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Text of a completion, without special tokens and cut before a stop string."""
        return tokenizers.decode(self.tokenizer, [list(ids)], stop)[0]

    # Weights

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """What the optimiser updates: every weight, or the adapters alone."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        """The trainable parameters by name, tied ones once; not copied."""
        return trainable(self.model)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` into the trainable parameters. Raises PolicyError unless names and shapes agree exactly."""
        copy_state(self.state_dict(), state)

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write model, tokenizer and generation config in Hugging Face format.

        With adapters, only they are written, unless `merge=True`: then they are folded into a copy of the weights and
        plain `AutoModelForCausalLM.from_pretrained` loads the result.
        """
        model = self.model
        if merge and self.has_adapters:
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
