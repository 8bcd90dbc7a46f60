from __future__ import annotations

import pytest
import torch
from tokenizers import processors

from coterie.errors import PolicyError
from coterie.policies import tokenizers
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec, character_tokenizer
from coterie.rollouts import Prompt, Sampling

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def tokenizer():
    return character_tokenizer("abcdehsu:;.", 64)


def wrap(tokenizer, single):
    pairs = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)


def test_bos_is_written_once(tokenizer):
    assert tokenizers.encode(tokenizer, "ab") == (1, 3, 4)
    assert tokenizers.encode(tokenizer, "<bos>ab") == (1, 3, 4)


def test_a_closing_eos_is_left_out_unless_the_text_has_it(tokenizer):
    wrap(tokenizer, "<bos> $A <eos>")
    assert tokenizers.encode(tokenizer, "ab") == (1, 3, 4)
    assert tokenizers.encode(tokenizer, "ab<eos>")[:4] == (1, 3, 4, 2)


def test_a_tokenizer_without_bos(tokenizer):
    wrap(tokenizer, "$A")
    tokenizer.bos_token = None
    assert tokenizers.encode(tokenizer, "ab") == (3, 4)
    with pytest.raises(PolicyError, match="prompt is empty"):
        tokenizers.encode(tokenizer, "")


def test_an_empty_prompt_starts_from_bos(tokenizer):
    assert tokenizers.encode(tokenizer, "") == (1,)
    wrap(tokenizer, "$A")
    assert tokenizers.encode(tokenizer, "") == (1,)


def test_a_template_that_writes_bos_is_not_given_another(tokenizer):
    tokenizer.chat_template = TEMPLATE
    ids = tokenizers.encode(tokenizer, [{"role": "user", "content": "b"}])
    assert ids.count(1) == 1 and tokenizer.decode(ids) == "<bos>u:b;a:"
    assert tokenizer.decode(tokenizers.encode(tokenizer, "b", system="c")) == "<bos>s:c;u:b;a:"
    own = [{"role": "system", "content": "d"}, {"role": "user", "content": "b"}]
    assert tokenizer.decode(tokenizers.encode(tokenizer, own, system="c")) == "<bos>s:d;u:b;a:"


def test_several_are_encoded_as_each_is(tokenizer):
    wrap(tokenizer, "<bos> $A <eos>")
    tokenizer.chat_template = TEMPLATE
    several = ["ab", [{"role": "user", "content": "b"}], "", "<bos>a<eos>", "cde", [{"role": "user", "content": "ab"}]]
    for system in (None, "c"):
        each = [tokenizers.encode(tokenizer, prompt, system) for prompt in several]
        assert tokenizers.encode_all(tokenizer, several, system) == each
    assert tokenizers.encode_all(tokenizer, []) == []
    with pytest.raises(PolicyError, match="has no 'Z', 'é'"):
        tokenizers.encode_all(tokenizer, ["aé", "<bos>", "aZ"])


def test_conversations_that_cannot_be_written(tokenizer):
    talk = [{"role": "user", "content": "b"}]
    with pytest.raises(PolicyError, match="no chat template"):
        tokenizers.encode(tokenizer, talk)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PolicyError, match="roles must alternate"):
        tokenizers.encode(tokenizer, talk)
    with pytest.raises(PolicyError, match="no messages"):
        tokenizers.encode(tokenizer, [])


def test_unknown_characters_are_named(tokenizer):
    with pytest.raises(PolicyError, match="has no 'Z', 'é'"):
        tokenizers.encode(tokenizer, "aéZ")
    assert tokenizers.encode_completion(tokenizer, "ab") == (3, 4)


def test_decoding_hides_special_tokens_and_cuts_at_the_earliest_stop(tokenizer):
    assert tokenizers.decode(tokenizer, [[3, 4, 2], [3, 5, 4, 5]], ("c", "b")) == ["a", "a"]


def test_decoding_all_at_once_gives_what_transformers_gives(tokenizer):
    ids = [[3, 4, 2], [], [1, 3, 5, 0], [9], [2, 2]]
    assert tokenizers._decoded_by_backend(tokenizer.__class__)
    told = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert tokenizers.decode(tokenizer, ids) == told


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked(tokenizer):
    class Own(tokenizer.__class__):
        def _decode(self, token_ids, **kwargs):
            return super()._decode(token_ids, **kwargs).upper()

    own = Own(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    assert tokenizers.decode(own, [[3, 4, 2], [5]]) == ["AB", "C"]


def test_a_missing_pad_token_changes_nothing():
    spec = ModelSpec(init=TinySpec(width=16, layers=1, vocabulary="abc"))
    with_pad = CausalLM.load(spec)
    bare = character_tokenizer("abc", 64)
    bare.pad_token = None
    without = CausalLM.load(spec, tokenizer=bare)
    prompts, seeds = [Prompt((1, 3)), Prompt((1, 4, 5, 3))], [[1, 2], [3, 4]]
    a, b = (p.rollout(prompts, seeds, Sampling(max_tokens=6)) for p in (with_pad, without))
    assert torch.equal(a["tokens"], b["tokens"]) and torch.equal(a["logp_old"], b["logp_old"])
    assert without.model.get_input_embeddings().weight.shape[0] == 6
