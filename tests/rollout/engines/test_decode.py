from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from coterie.policies.tiny import TinySpec, build
from coterie.rollout.engines.decode import DecodeState


def gemma2():
    config = Gemma2Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


MODELS = {
    family: lambda f=family: build(TinySpec(family=f, vocabulary="abcdefgh"), 0)[0] for family in ("llama", "gpt2")
}
MODELS["gemma2"] = gemma2


@torch.no_grad()
def check(state, histories):
    """The state predicts what the model does after each whole history, alone and unpadded."""
    assert state.lengths.tolist() == [len(h) for h in histories]
    for logits, history in zip(state.logits, histories, strict=True):
        assert torch.allclose(logits, state.model(torch.tensor([history])).logits[0, -1], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padded", [True, False])
def test_rows_fork_step_and_leave_mid_sequence(name, padded):
    model = MODELS[name]()
    histories = [[1, 3, 4, 5, 6], [1, 7, 8] if padded else [1, 7, 8, 9, 3], [1, 9, 3, 4, 4]]
    with torch.inference_mode():
        state = DecodeState.prefill(model, histories, model.device)
        check(state, histories)
        assert (state.mask is not None) == padded

        branches = state.fork(torch.tensor([1, 1, 0]))
        grown = [[*histories[1], 5], [*histories[1], 6], [*histories[0], 7]]
        branches.step(torch.tensor([5, 6, 7]))
        check(branches, grown)
        check(state, histories)  # forking left it alone

        twigs = branches.fork(torch.tensor([2, 0]))
        twigs.step(torch.tensor([3, 4]))
        check(twigs, [[*grown[2], 3], [*grown[0], 4]])

        branches.keep(torch.tensor([1]))
        branches.step(torch.tensor([8]))
        check(branches, [[*grown[1], 8]])

        state.step(torch.tensor([8, 8, 8]))
        check(state, [[*h, 8] for h in histories])
