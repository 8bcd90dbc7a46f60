from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coterie.errors import PolicyError
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import LoraSpec, ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollouts import Rollouts, Sampling

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "granite", "cohere", "opt", "bloom"]
SPECS = {
    "plain": Sampling(max_tokens=6),
    "cold": Sampling(temperature=0.7, max_tokens=6),
    "hot": Sampling(temperature=1.3, max_tokens=6),
    "top-k": Sampling(temperature=1.3, top_k=5, max_tokens=6),
    "top-p": Sampling(temperature=0.7, top_p=0.8, max_tokens=6),
    "min-p": Sampling(min_p=0.05, max_tokens=6),
    "all": Sampling(temperature=1.3, top_k=9, top_p=0.9, min_p=0.02, max_tokens=6),
}


def plain_rows(policy: CausalLM, rollouts: Rollouts):
    """One unpadded forward a rollout, the support cut token by token in Python: (b, [logp], [entropy]) of each row."""
    s = rollouts.sampling
    for b in range(len(rollouts)):
        prompt = rollouts.prompts[int(rollouts["groups"][b])].tokens
        completion = rollouts["tokens"][b, : int(rollouts["lengths"][b])].tolist()
        logits = policy.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        logps, entropies = [], []
        for row, token in zip(logits / s.temperature, completion, strict=True):
            order = row.argsort(descending=True).tolist()
            support = order[: s.top_k] if s.top_k else order
            total, nucleus = 0.0, []
            for i, p in zip(support, row[support].softmax(0).tolist(), strict=True):
                if total < s.top_p:
                    nucleus.append(i)
                total += p
            probs = row.softmax(0)
            support = [i for i in nucleus if probs[i] >= s.min_p * probs.max()]
            assert token in support
            logp = row[support].log_softmax(0)
            logps.append(logp[support.index(token)])
            entropies.append(-(logp.exp() * logp).sum())
        yield b, torch.stack(logps), torch.stack(entropies)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_scored_and_plain_log_probs_agree(make_policy, prompts, seeds, family, name):
    policy = make_policy(family)
    rollouts = policy.rollout(prompts, seeds, SPECS[name], entropy=True)
    scored = policy.score(rollouts, {"logp", "entropy"})
    mask = rollouts["mask"]
    assert policy._split.exact
    assert rollouts["groups"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert rollouts["prompt_index"].tolist() == [4, 4, 4, 0, 0, 2, 2, 2, 2]
    assert not rollouts["logp_old"][~mask].any() and not scored["logp"][~mask].any()
    assert (scored["logp"] - rollouts["logp_old"]).abs().max() < 1e-5
    assert (scored["entropy"] - rollouts["entropy_old"]).abs().max() < 1e-5
    with torch.no_grad():
        for b, logp, entropy in plain_rows(policy, rollouts):
            assert (scored["logp"][b][mask[b]] - logp).abs().max() < 1e-5
            assert (scored["entropy"][b][mask[b]] - entropy).abs().max() < 1e-5


@pytest.mark.oracle("lp-reg")
@pytest.mark.parametrize("name", SPECS)
def test_log_probs_without_unlikely_tokens(make_policy, prompts, seeds, name):
    policy = make_policy("llama")
    rollouts = policy.rollout(prompts, seeds, SPECS[name])
    mask, plain = rollouts["mask"], policy.score(rollouts)["logp"].detach()
    assert (policy.score_min_p(rollouts, 0.0) - plain).abs().max() < 1e-5
    cut = policy.score_min_p(rollouts, 0.3)
    assert not cut.requires_grad and (cut[~mask] == 0).all()
    gone = cut == -torch.inf
    assert gone.any() or name != next(iter(SPECS))
    assert (cut[mask & ~gone] >= plain[mask & ~gone] - 1e-5).all()
    assert (plain[gone].exp() <= 0.3).all()


@pytest.mark.parametrize("whole", [False, True], ids=["split", "whole"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "cohere"])
def test_gradient_equals_that_of_the_plain_forward(make_policy, prompts, seeds, family, whole):
    policy = make_policy(family, torch.float64)
    policy._split.exact = not whole
    rollouts = make_policy(family).rollout(prompts, seeds, SPECS["all"])
    # Only GPT-2 is float64 throughout in transformers: its RMSNorm and eager softmax compute in float32 always.
    tolerance = 1e-9 if family == "gpt2" else 1e-5
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(rollouts["mask"].shape, generator=generator, dtype=torch.float64)
    scored = policy.score(rollouts, {"logp", "entropy"})
    assert scored["logp"].dtype == torch.float64
    ours = torch.autograd.grad(
        (weights * (scored["logp"] + 0.3 * scored["entropy"])).sum(), policy.trainable_parameters()
    )
    rows = plain_rows(policy, rollouts)
    loss = sum((weights[b, : len(logp)] * (logp + 0.3 * entropy)).sum() for b, logp, entropy in rows)
    theirs = torch.autograd.grad(loss, policy.trainable_parameters())
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < tolerance


def test_a_model_that_does_not_split_is_scored_by_its_own_logits(make_policy, prompts, seeds):
    model = make_policy().model
    model.register_forward_hook(lambda module, args, out: setattr(out, "logits", 0.5 * out.logits.cos()) or out)
    policy = CausalLM(model, make_policy().tokenizer, make_policy().spec)
    assert not policy._split.exact
    rollouts = policy.rollout(prompts, seeds, SPECS["all"], entropy=True)
    scored = policy.score(rollouts, {"logp", "entropy"})
    assert (scored["logp"] - rollouts["logp_old"]).abs().max() < 1e-5
    assert (scored["entropy"] - rollouts["entropy_old"]).abs().max() < 1e-5


def test_masked_out_tokens_stay_as_context(make_policy, prompts):
    policy = make_policy()
    sampling = Sampling(max_tokens=6, top_k=20)
    tokens, mask = torch.tensor([[5, 6, 7, 8, 0]]), torch.tensor([[True, False, False, True, False]])
    table = {"groups": torch.tensor([0]), "tokens": tokens, "mask": mask}
    logp = policy.score(Rollouts(prompts[:1], table, Sampling()), {"logp"})["logp"]
    logits = policy.model(input_ids=torch.tensor([[*prompts[0].tokens, 5, 6, 7]])).logits[0].log_softmax(-1)
    assert torch.allclose(
        logp[0], torch.stack([logits[3, 5], *[torch.tensor(0.0)] * 2, logits[6, 8], torch.tensor(0.0)])
    )
    assert sampling.truncates


def test_forbidden_tokens_are_neither_sampled_nor_normalised_over(make_policy, prompts, seeds):
    policy = make_policy()
    policy.engine.forbid = tuple(range(3, 20))
    rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=8))
    assert not torch.isin(rollouts["tokens"][rollouts["mask"]], torch.arange(3, 20)).any()
    scored = policy.score(rollouts, {"logp", "entropy"})
    assert (scored["logp"] - rollouts["logp_old"]).abs().max() < 1e-5
    scored["entropy"].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.trainable_parameters())


def test_greedy_rollouts_are_scored_but_not_trained_on(make_policy, prompts, seeds):
    policy = make_policy()
    rollouts = policy.rollout(prompts, seeds, Sampling(temperature=0.0, max_tokens=4))
    with torch.no_grad():
        assert (policy.score(rollouts)["logp"] - rollouts["logp_old"]).abs().max() < 1e-5
    with pytest.raises(PolicyError, match="temperature 0"):
        policy.score(rollouts)
    with pytest.raises(PolicyError, match="not value"), torch.no_grad():
        policy.score(rollouts, {"value"})


def test_rollouts_carry_the_version_and_stopped_texts(make_policy, prompts, seeds):
    policy = make_policy()
    policy.version = 3
    rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=20, stop=("a",)))
    assert set(rollouts["version"][rollouts["mask"]].tolist()) == {3}
    assert rollouts["lengths"].tolist() == rollouts["mask"].sum(-1).tolist()
    assert not any("a" in text or "<" in text for text in rollouts.texts)
    assert 12 + 3 in [int(rollouts["tokens"][b, n - 1]) for b, n in enumerate(rollouts["lengths"].tolist())]


def test_sft_loss_is_the_mean_cross_entropy_of_completions_with_eos(make_policy):
    policy = make_policy()
    prompts, completions = [(1, 5, 6), (1, 7)], [(8,), (9, 10, 2)]
    losses = []
    for p, c in zip(prompts, [(8, 2), (9, 10, 2)], strict=True):
        logits = policy.model(input_ids=torch.tensor([[*p, *c]])).logits[0, len(p) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(c), reduction="none").tolist()
    loss = policy.sft_loss(prompts, completions)
    assert loss.item() == pytest.approx(sum(losses) / 5, abs=1e-6)
    loss.backward()
    assert not policy.model.training


@pytest.mark.parametrize("family", ["llama", "opt"])  # OPT's layers apply dropout by themselves
def test_gradient_checkpointing_recomputes_layers_and_changes_nothing(make_policy, prompts, seeds, family):
    plain = make_policy(family)
    checked = CausalLM(
        make_policy(family).model, plain.tokenizer, plain.spec.model_copy(update={"gradient_checkpointing": True})
    )
    rollouts = plain.rollout(prompts, seeds, Sampling(max_tokens=5))
    calls = []
    layers = checked.model.get_decoder().layers
    (layers[0].mlp if family == "llama" else layers[0].fc1).register_forward_pre_hook(lambda *_: calls.append(1))
    a, b = (p.score(rollouts)["logp"] for p in (plain, checked))
    assert torch.allclose(a, b, atol=1e-5) and len(calls) == 1
    ours, theirs = (torch.autograd.grad(x.sum(), p.trainable_parameters()) for x, p in ((b, checked), (a, plain)))
    assert len(calls) == 2
    assert all((x - y).norm() < 1e-5 * y.norm() for x, y in zip(ours, theirs, strict=True))
    assert not any(m.training for m in checked.model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_saved_models_load_with_plain_transformers(make_policy, tmp_path, family):
    policy = make_policy(family)
    policy.save(tmp_path)
    ids = torch.tensor([[1, 4, 5, 6]])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, policy.model(ids).logits)
    assert loaded.generation_config.eos_token_id == 2
    assert tuple(AutoTokenizer.from_pretrained(tmp_path)("12+3").input_ids) == policy.encode("12+3")
    again = CausalLM.load(ModelSpec(name=str(tmp_path)))
    assert torch.equal(again.model(ids).logits, policy.model(ids).logits)
    assert again.encode("12+3") == policy.encode("12+3") and again.decode([4, 5, 2]) == "12"


def test_state_dict_round_trip_and_misfit(make_policy, prompts, seeds):
    policy = make_policy()
    state = {name: p.clone() for name, p in policy.state_dict().items()}
    rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=5))
    before = policy.score(rollouts)["logp"].detach()
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.add_(0.1)
    assert not torch.allclose(policy.score(rollouts)["logp"], before)
    policy.load_state_dict(state)
    assert torch.equal(policy.score(rollouts)["logp"], before)
    name = next(iter(state))
    with pytest.raises(PolicyError, match="do not fit"):
        policy.load_state_dict({n: p for n, p in state.items() if n != name})
    with pytest.raises(PolicyError, match="do not fit"):
        policy.load_state_dict({**state, name: state[name][:1]})


@pytest.fixture
def lora():
    spec = ModelSpec(init=TinySpec(width=32, vocabulary="0123456789+="), lora=LoraSpec(r=4, alpha=8, dropout=0.5))
    return CausalLM.load(spec)


def nudge(policy):
    with torch.no_grad():
        for i, p in enumerate(policy.trainable_parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))


def test_lora_trains_adapters_only_and_scores_without_dropout(lora, prompts, seeds):
    assert lora.has_adapters and lora._split.exact
    assert all("lora_" in name for name in lora.state_dict())
    nudge(lora)
    rollouts = lora.rollout(prompts, seeds, Sampling(max_tokens=5))
    logp = lora.score(rollouts)["logp"]
    assert (logp - rollouts["logp_old"]).abs().max() < 1e-5
    logp.sum().backward()
    assert all(p.grad is not None for p in lora.trainable_parameters())
    losses = {lora.sft_loss([(1, 4)], [(5, 6)]).item() for _ in range(4)}
    assert len(losses) > 1  # dropout acts in a warm start


def test_lora_merged_loads_with_plain_transformers_and_adapters_reload(lora, tmp_path):
    nudge(lora)
    ids = torch.tensor([[1, 4, 5, 6]])
    want = lora.model(ids).logits
    lora.save(tmp_path / "merged", merge=True)
    assert torch.allclose(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits, want, atol=1e-5)
    assert torch.equal(lora.model(ids).logits, want)  # merging worked on a copy

    lora.model.unload().save_pretrained(tmp_path / "base")
    lora.tokenizer.save_pretrained(tmp_path / "base")
    policy = CausalLM.load(ModelSpec(name=str(tmp_path / "base"), lora=LoraSpec(r=4)))
    nudge(policy)
    policy.save(tmp_path / "adapters")
    again = CausalLM.load(ModelSpec(name=str(tmp_path / "adapters")))
    assert torch.equal(again.model(ids).logits, policy.model(ids).logits)
    assert again.state_dict().keys() == policy.state_dict().keys()


def test_copy_frozen_is_independent_and_takes_no_gradient(make_policy, prompts, seeds):
    policy = make_policy()
    rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=5))
    twin = policy.copy_frozen()
    before = policy.score(rollouts)["logp"].detach()
    nudge(policy)
    assert torch.equal(twin.score(rollouts)["logp"], before)
    assert not twin.trainable_parameters()


def test_bfloat16_scores_in_float32(prompts, seeds):
    policy = CausalLM.load(ModelSpec(init=TinySpec(vocabulary="0123456789+="), dtype="bfloat16"))
    rollouts = policy.rollout(prompts, seeds, Sampling(max_tokens=5))
    logp = policy.score(rollouts)["logp"]
    assert logp.dtype == rollouts["logp_old"].dtype == torch.float32
    assert (logp - rollouts["logp_old"]).abs().max() < 0.05
