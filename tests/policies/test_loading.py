from __future__ import annotations

import sys

import pytest
from pydantic import ValidationError

from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.tiny import TinySpec

TINY = TinySpec(width=16, layers=1, vocabulary="abc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    CausalLM.load(ModelSpec(init=TINY)).save(path)
    return path


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(PolicyError, match=r"nowhere: no such folder\n  mend: "):
        CausalLM.load(ModelSpec(name=str(tmp_path / "nowhere")))


def test_a_file_and_a_folder_without_a_model_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PolicyError, match="not a folder"):
        CausalLM.load(ModelSpec(name=str(tmp_path / "file")))
    with pytest.raises(PolicyError, match=r"no config\.json"):
        CausalLM.load(ModelSpec(name=str(tmp_path)))


def test_a_folder_without_tokenizer_or_weights(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(PolicyError, match="cannot load the tokenizer"):
        CausalLM.load(ModelSpec(name=str(tmp_path)))
    tokenizer = CausalLM.load(ModelSpec(init=TINY)).tokenizer
    with pytest.raises(PolicyError, match="cannot load the model"):
        CausalLM.load(ModelSpec(name=str(tmp_path)), tokenizer=tokenizer)


def test_an_unreachable_hub_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PolicyError, match=r"someone/nothing: cannot get the tokenizer from the hub.*\n  mend: "):
        CausalLM.load(ModelSpec(name="someone/nothing"))


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PolicyError, match="device=cuda:1: no CUDA"):
        CausalLM.load(ModelSpec(init=TINY, device="cuda:1"))


def test_missing_peft_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PolicyError, match=r"coterie\[peft\]"):
        CausalLM.load(ModelSpec(init=TINY, lora=LoraSpec()))


def test_unknown_lora_targets(folder):
    with pytest.raises(PolicyError, match="target_modules"):
        CausalLM.load(ModelSpec(init=TINY, lora=LoraSpec(target_modules=("nothing_like_it",))))


def test_a_tokenizer_with_more_tokens_than_the_model(folder):
    larger = CausalLM.load(ModelSpec(init=TinySpec(vocabulary="abcdefgh"))).tokenizer
    with pytest.raises(PolicyError, match="11 tokens and the model embeds 6"):
        CausalLM.load(ModelSpec(name=str(folder)), tokenizer=larger)


def test_specs_are_checked(tmp_path):
    for wrong in ({}, {"name": "x", "init": TINY}, {"name": "x", "lorra": {}}, {"name": "x", "dtype": "float16"}):
        with pytest.raises(ValidationError):
            ModelSpec(**wrong)
    with pytest.raises(PolicyError, match="cannot read the chat template"):
        CausalLM.load(ModelSpec(init=TINY, chat_template=tmp_path / "none.jinja"))


def test_settings_arrive(folder, tmp_path):
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    spec = ModelSpec(name=str(folder), max_context=20, chat_template=tmp_path / "t.jinja", attn="eager", system="c")
    policy = CausalLM.load(spec)
    assert policy.engine.context == 20
    assert policy.model.config._attn_implementation == "eager"
    assert policy.decode(policy.encode("ab")) == "cab"
