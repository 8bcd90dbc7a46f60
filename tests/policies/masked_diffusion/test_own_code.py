"""Checkpoints that bring their own code, as LLaDA does: a small one made, loaded from disk, trained, saved.

Its code is as old as LLaDA's: no post_init, tie_weights without arguments, a setting that configs lost, no padding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from coterie import api
from coterie.errors import PolicyError
from coterie.policies.masked_diffusion.policy import MaskedDiffusion
from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
from coterie.policies.tiny import CHARACTERS, character_tokenizer
from coterie.recipe import resolve
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.sections import Rollout, Settings, Unmask
from tests.e2e.conftest import TINY

WIDTH = 4
CONFIG = """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own_masked"

    def __init__(self, d_model=16, n_heads=2, vocab=40, places=48, mask_token_id=None, **kwargs):
        self.d_model, self.n_heads, self.vocab, self.places = d_model, n_heads, vocab, places
        self.mask_token_id = mask_token_id
        super().__init__(**kwargs)
"""
MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_own import OwnConfig


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        d = config.d_model
        self.embed, self.place = nn.Embedding(config.vocab, d), nn.Embedding(config.places, d)
        self.attend, self.mix = nn.MultiheadAttention(d, config.n_heads, batch_first=True), nn.Linear(d, d)
        self.head = nn.Linear(d, config.vocab)

    def tie_weights(self):
        pass

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None, **kwargs):  # every token sees every other, padding too
        assert not self.config.use_cache
        x = self.embed(input_ids) + self.place.weight[: input_ids.shape[1]]
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return MaskedLMOutput(logits=self.head(x + torch.tanh(self.mix(x))))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as its makers would publish it, known as AutoModel and AutoModelForCausalLM alone, with no mask token in
    its tokenizer.
    """
    from transformers import AutoConfig, AutoModel, dynamic_module_utils

    patched = pytest.MonkeyPatch()
    patched.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    made = tmp_path_factory.mktemp("hub") / "own-masked"
    made.mkdir()
    tokenizer = character_tokenizer(CHARACTERS, 40, mask=True)
    mask = tokenizer.mask_token_id
    tokenizer.mask_token = None
    tokenizer.save_pretrained(made)
    (made / "configuration_own.py").write_text(CONFIG)
    (made / "modeling_own.py").write_text(MODEL)
    known = {name: "modeling_own.OwnModel" for name in ("AutoModel", "AutoModelForCausalLM")}
    config = {
        "model_type": "own_masked", "auto_map": {"AutoConfig": "configuration_own.OwnConfig", **known},
        "vocab": len(tokenizer), "mask_token_id": mask,
    }  # fmt: skip
    (made / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = AutoConfig.from_pretrained(made, trust_remote_code=True)
        weights = AutoModel.from_config(shape, trust_remote_code=True).state_dict()
    save_file({k: w.contiguous() for k, w in weights.items()}, made / "model.safetensors", metadata={"format": "pt"})
    yield made
    patched.undo()


def load(folder: Path, **spec: Any) -> MaskedDiffusion:
    settings = Settings(unmask=Unmask(steps=2), rollout=Rollout(max_tokens=WIDTH))
    named = MaskedDiffusionSpec(name=str(folder), device="cpu", trust_remote_code=True, **spec)
    return MaskedDiffusion.load(named, settings)


def roll(policy: MaskedDiffusion, *texts: str) -> Rollouts:
    prompts = [Prompt(policy.encode(text), index=i) for i, text in enumerate(texts)]
    seeds = [[10 * len(p.tokens) + k for k in range(3)] for p in prompts]
    return policy.rollout(prompts, seeds, Sampling(max_tokens=WIDTH))


def test_code_is_not_run_unasked(folder: Path) -> None:
    spec = MaskedDiffusionSpec(name=str(folder), device="cpu")
    with pytest.raises(PolicyError, match="custom code") as caught:
        MaskedDiffusion.load(spec, Settings())
    assert "model.trust_remote_code=true" in str(caught.value.hint)


@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_a_model_that_knows_nothing_of_padding_is_scored_exactly(folder: Path, shifted: bool) -> None:
    policy = load(folder, shifted=shifted)
    assert type(policy.model).__name__ == "OwnModel" and policy.mask_id == policy.model.config.mask_token_id
    whole = roll(policy, "a", "abcdef", "abc")
    assert torch.allclose(policy.score(whole)["logp"], whole["logp_old"], atol=1e-5)
    for number, text in enumerate(("a", "abcdef", "abc")):
        alone = roll(policy, text)
        rows = whole["groups"] == number
        assert torch.equal(alone.media["canvas"], whole.media["canvas"][rows])
        assert torch.allclose(alone["logp_old"], whole["logp_old"][rows], atol=1e-5)


@torch.no_grad()
def test_a_shifted_model_is_read_one_place_before(folder: Path) -> None:
    policy, shifted = load(folder), load(folder, shifted=True)
    ids = torch.tensor([[5, 6, policy.mask_id, policy.mask_id]])
    raw = policy.model(input_ids=ids).logits[0]
    for own, want in ((policy, raw[2:4]), (shifted, raw[1:3])):
        got = own.predictor.logits(own.model, [[5, 6]], torch.tensor([0]), ids[:, 2:])[0]
        known = [t for t in range(raw.shape[1]) if t != policy.mask_id]
        assert torch.equal(got[:, known], want[:, known]) and (got[:, policy.mask_id] == -torch.inf).all()


def test_it_trains_goes_on_and_is_saved_with_its_code(folder: Path, tmp_path: Path) -> None:
    model = f"model={{kind: masked_diffusion, name: {folder}, trust_remote_code: true}}"
    learnable = ["task.dense=true", "unmask.steps=2", "rollout.group_size=8", "optimizer.lr=1e-2"]
    overrides = [*(o for o in TINY if not o.startswith("model=")), *learnable, model]
    result = api.start(resolve(method="coupled-grpo", overrides=overrides), tmp_path / "run", quiet=True)
    assert result.metrics[1]["grad/norm"] > 0
    made = tmp_path / "run/checkpoints/step-000002/policy"
    assert (made / "modeling_own.py").is_file()
    again = load(made)
    own, start = again.state_dict(), load(folder).state_dict()
    assert any(not torch.equal(own[k], start[k]) for k in own)
    assert all(torch.equal(own[k], v) for k, v in result.policy.state_dict().items())
