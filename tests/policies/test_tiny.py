from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer

from coterie.policies.tiny import CHARACTERS, TinySpec, build


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_weights_depend_on_the_seed_alone(family):
    spec = TinySpec(family=family, width=16, heads=2, layers=1, vocabulary="abc")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build(spec, 5)[0].state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again, other = build(spec, 5)[0].state_dict(), build(spec, 6)[0].state_dict()
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_the_tokenizer_is_one_token_a_character_and_reloads(tmp_path):
    model, tokenizer = build(TinySpec(width=16, layers=1), 0)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert model.generation_config.eos_token_id == 2
    tokenizer.save_pretrained(tmp_path)
    for t in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = t(CHARACTERS)["input_ids"]
        assert ids == [1, *range(3, 3 + len(CHARACTERS))]
        assert t.decode([*ids, 2], skip_special_tokens=True) == CHARACTERS


def test_impossible_shapes_are_refused():
    for wrong in ({"width": 20, "heads": 3}, {"kv_heads": 3}, {"family": "gpt2", "kv_heads": 2}, {"vocabulary": "aa"}):
        with pytest.raises(ValidationError):
            TinySpec(**wrong)
