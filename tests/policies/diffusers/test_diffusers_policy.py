"""Pipelines of diffusers as policies: they draw what diffusers draws, score it, and go back to diffusers."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coterie.errors import PolicyError
from coterie.policies.diffusers.architectures import Architecture, architecture_of
from coterie.policies.diffusers.policy import DiffusersPolicy
from coterie.policies.diffusers.schedule import schedule_of
from coterie.policies.diffusers.spec import DiffusersSpec
from coterie.policies.flow import steps as mathematics
from coterie.policies.reference import Reference
from coterie.rollouts import Denoising, Prompt, Sampling

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
NAMES = ["sd3", "flux", "sana", "wan", "sd"]
SEEDS = [[1, 2], [3, 4]]
LORA = {"r": 2, "alpha": 4}


@cache
def made(name: str) -> DiffusersPolicy:
    return DiffusersPolicy.load(spec_of(name))


def spec_of(name: str, **settings: Any) -> DiffusersSpec:
    init = {"architecture": name, "layers": 1, "width": 16}
    size = {"height": 32, "width": 32} if name == "sana" else {}  # its pipeline takes multiples of 32 alone
    return DiffusersSpec.model_validate({"init": init, "device": "cpu", **size, **settings})


def policy_of(name: str, **settings: Any) -> DiffusersPolicy:
    """A policy of its own over the architecture's one pipeline; with adapters these do something."""
    shared = made(name)
    pipe = copy.copy(shared.pipe)
    part = shared.architecture.denoiser
    setattr(pipe, part, copy.deepcopy(getattr(shared.pipe, part)))
    spec = spec_of(name, **settings)
    policy = DiffusersPolicy(pipe, spec, architecture_of(pipe, spec))
    if policy.has_adapters:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in policy.trainable_parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return policy


def prompts_of(policy: DiffusersPolicy) -> list[Prompt]:
    return [Prompt(policy.encode(text), index=i) for i, text in enumerate(("a red wall", "Blue paint, 2 coats"))]


def sampling(count: int = 4, **settings: Any) -> Sampling:
    return Sampling(denoising=Denoising(count, **settings))


def pictures_of(pipe: Any, name: str, noise: Tensor, prompt: str, count: int, guidance: float) -> np.ndarray:
    """What a plain pipeline draws from the same noise; at guidance 1 without a second pass."""
    common: dict[str, Any] = {"num_inference_steps": count, "output_type": "np", "height": 16, "width": 16}
    common |= {"guidance_scale": guidance, "negative_prompt": "grey", "latents": noise}
    if name != "sd":
        common["max_sequence_length"] = 32
    if name == "sana":
        common |= {"height": 32, "width": 32, "use_resolution_binning": False}
    if name == "wan":
        common["num_frames"] = 5
    if name == "flux":
        common |= {"guidance_scale": 2.5, "true_cfg_scale": guidance}
        common["latents"] = pipe._pack_latents(noise, *noise.shape)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(prompt, **common)
    return np.asarray(drawn.frames if name == "wan" else drawn.images)


def own_settings(name: str) -> dict[str, Any]:
    return {"negative_prompt": "grey"} | ({"embedded_guidance": 2.5} if name == "flux" else {})


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_without_noise_it_draws_what_diffusers_draws(name: str, guidance: float) -> None:
    policy = policy_of(name, **own_settings(name))
    prompt = prompts_of(policy)[1]
    found = policy.rollout([prompt], [[5]], sampling(3, sampler="ode", guidance=guidance))
    noise = torch.randn(4, *policy.shape, generator=torch.Generator().manual_seed(5))[:1]
    plain = pictures_of(policy.pipe, name, noise, "Blue paint, 2 coats", 3, guidance)
    np.testing.assert_allclose(found.texts[0], plain[0], atol=2e-4)
    assert found.texts[0].std() > 0.01 and not found["mask"].any()


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_log_probs_are_the_sampled_ones(name: str) -> None:
    policy = policy_of(name, lora=LORA, max_forward=3 if name == "sd3" else None)
    for sampler, guidance in (("flow_sde", 1.0), ("ddim", 3.0)):
        spec = sampling(4, sampler=sampler, guidance=guidance)
        rollouts = policy.rollout(prompts_of(policy), SEEDS, spec)
        assert rollouts.media["states"].dtype == torch.float32 and rollouts["mask"].sum() >= 12
        some = rollouts.rows(torch.tensor([3, 0]))
        again = policy.score(some)["logp"].detach()
        assert float((again - some["logp_old"]).abs().max()) <= 1e-5 == policy.tolerance
        assert bool((rollouts["logp_old"][rollouts["mask"]] != 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_at_half_the_resolution_it_is_the_pipeline_of_half_the_size(name: str) -> None:
    """States, noise levels, pictures and log-probs; the whole size stays what an evaluation draws."""
    side = 64 if name == "sana" else 32
    large, small = policy_of(name, height=side, width=side), policy_of(name)
    half = large.rollout(prompts_of(large), SEEDS, sampling(3, resolution=0.5))
    own = small.rollout(prompts_of(small), SEEDS, sampling(3))
    assert torch.equal(half.media["states"], own.media["states"]) and torch.equal(half["logp_old"], own["logp_old"])
    assert half.texts[0].shape[-3:] == own.texts[0].shape[-3:] == (side // 2, side // 2, 3)
    assert float((large.score(half)["logp"].detach() - half["logp_old"]).abs().max()) <= large.tolerance
    assert large.rollout(prompts_of(large), SEEDS, sampling(1)).texts[0].shape[-3:] == (side, side, 3)
    with pytest.raises(PolicyError, match="multiples of") as told:
        large.shape_of(Denoising(3, resolution=0.8))
    assert told.value.where == "denoise.resolution"


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_steps_of_diffusion_are_those_of_ddim(predicts: str, eta: float) -> None:
    """A path of the sampler ddim in a flow's coordinates is the DDIM scheduler's own, of the same draws."""
    policy = policy_of("sd")
    scheduler = diffusers.DDIMScheduler.from_config(policy.pipe.scheduler.config, prediction_type=predicts)
    policy.schedule, policy._grids = schedule_of(scheduler), {}
    spec = sampling(5, sampler="ddim", settings=(("noise", eta),))
    prompt = prompts_of(policy)[:1]
    states = policy.rollout(prompt, [[7]], spec).media["states"][0]
    draws = torch.randn(6, *policy.shape, generator=torch.Generator().manual_seed(7))
    told = policy._condition("a red wall")
    x = draws[:1]
    scheduler.set_timesteps(5)
    for step, time in enumerate(scheduler.timesteps):
        with torch.no_grad():
            said = policy.model(x, time, **told).sample
        x = scheduler.step(said, time, x, eta=eta, variance_noise=draws[step + 1].unsqueeze(0)).prev_sample
        scale = policy._grid(spec.denoising).scales[step + 1]  # type: ignore[arg-type]
        torch.testing.assert_close(states[step + 1] * scale, x[0], atol=2e-4, rtol=1e-4)


class Normal(nn.Module):
    """Knows data N(1, .5^2): the velocity of a flow, or the noise of a diffusion."""

    def __init__(self, flow: bool, alphas: Tensor) -> None:
        super().__init__()
        self.flow, self.alphas = flow, alphas
        self.mean = nn.Parameter(torch.tensor(1.0))
        self.config = SimpleNamespace()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.flow:
            s = (time / 1000).view(-1, 1)
            a = 1 - s
        else:
            abar = self.alphas[time.long()].view(-1, 1).float()
            a, s = abar.sqrt(), (1 - abar).sqrt()
        clean = self.mean + a * 0.25 / (a**2 * 0.25 + s**2) * (x - a * self.mean)
        noise = (x - a * clean) / s
        return noise - clean if self.flow else noise


class Numbers(Architecture):
    """The thinnest there is: latents of two numbers, and a prompt that says nothing."""

    def shape(self) -> tuple[int, ...]:
        return (2,)

    def condition(self, prompt: str, negative: bool) -> dict[str, Tensor]:
        return {"nothing": torch.zeros(1, 1)}

    def predict(self, model: Any, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return model(x, time)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "ddim", "ode"])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_samples_are_distributed_as_the_odes(kind: str, sampler: str) -> None:
    """Means and standard deviations at every tenth of the pipeline's own noise levels, for a model of one Gaussian."""
    flow = kind == "flow"
    scheduler: Any = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        if flow
        else diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    )
    alphas = getattr(scheduler, "alphas_cumprod", torch.zeros(0))
    pipe = SimpleNamespace(scheduler=scheduler, components={}, transformer=Normal(flow, alphas))
    spec = spec_of("sd3")
    policy = DiffusersPolicy(pipe, spec, Numbers(pipe, spec))
    count, steps = 1500, 100
    seeds = [list(range(count))]
    states = policy.rollout([Prompt((97,))], seeds, sampling(steps, sampler=sampler)).media["states"]
    levels = policy.levels(Denoising(steps))
    for step in range(10, steps + 1, 10):
        s = float(levels[step])
        want_mean, want_std = 1.0 - s, float(np.hypot(0.5 * (1 - s), s))
        error = 4 * want_std / math.sqrt(2 * count)
        assert float(states[:, step].mean()) == pytest.approx(want_mean, abs=error + 0.02), step
        assert float(states[:, step].std()) == pytest.approx(want_std, abs=error + 0.02), step


def test_noise_is_a_rollouts_own_and_pictures_are_the_table_s_texts() -> None:
    policy = policy_of("sd")
    whole = policy.rollout(prompts_of(policy), SEEDS, sampling())
    alone = policy.rollout(prompts_of(policy)[1:], [[3]], sampling())
    torch.testing.assert_close(alone.media["states"][0], whole.media["states"][2], rtol=1e-4, atol=1e-5)
    assert whole.texts[0].shape == (16, 16, 3) and 0.0 <= whole.texts[0].min() < whole.texts[0].max() <= 1.0
    video = policy_of("wan")
    assert video.rollout(prompts_of(video)[:1], [[3]], sampling()).texts[0].shape == (5, 16, 16, 3)


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("sd3", negative_prompt="no")
    asked = []
    real = type(policy.architecture).condition

    def counted(self: Any, prompt: str, negative: bool) -> Any:
        asked.append((prompt, negative))
        return real(self, prompt, negative)

    monkeypatch.setattr(type(policy.architecture), "condition", counted)
    for guidance in (1.0, 2.0, 2.0):
        policy.score(policy.rollout(prompts_of(policy), SEEDS, sampling(guidance=guidance)))
    assert asked == [("a red wall", False), ("Blue paint, 2 coats", False), ("no", True)]


def test_guidance_that_is_told_to_the_model() -> None:
    first, second = policy_of("flux"), policy_of("flux", embedded_guidance=9.0)
    assert first.architecture.guidance == 3.5
    states = [p.rollout(prompts_of(p), SEEDS, sampling(sampler="ode")).media["states"][:, -1] for p in (first, second)]
    assert float((states[0] - states[1]).abs().max()) > 1e-3
    with pytest.raises(PolicyError, match="was not distilled"):
        policy_of("sd3", embedded_guidance=3.0)


def test_gradients() -> None:
    """Of log-probs against a finite difference along the gradient, in parts or at once; none through the part without
    a prompt.
    """
    grads = []
    for size in (None, 3):
        policy = policy_of("sd3", lora=LORA, max_forward=size, gradient_checkpointing=size is not None)
        rollouts = policy.rollout(prompts_of(policy), SEEDS, sampling(guidance=2.0))
        policy.score(rollouts)["logp"].sum().backward()
        grads.append([p.grad for p in policy.trainable_parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()) + 1e-7)
    length = math.sqrt(sum(float((g**2).sum()) for g in grads[0]))
    with torch.no_grad():
        values = []
        for move in (1e-3, -1e-3):
            for p, g in zip(policy.trainable_parameters(), grads[0], strict=True):
                p += move * g / length
            values.append(float(score_with_frozen_guidance(policy, rollouts, move, grads[0], length)))
            for p, g in zip(policy.trainable_parameters(), grads[0], strict=True):
                p -= move * g / length
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(length, rel=0.02)


def score_with_frozen_guidance(
    policy: DiffusersPolicy, rollouts: Any, move: float, grads: Any, length: float
) -> Tensor:
    """Log-probs summed, with what guidance leads away from as it was before the move."""
    real = policy._predict

    def predict(*args: Any) -> Tensor:
        if not args[4][0][1]:
            return real(*args)
        for p, g in zip(policy.trainable_parameters(), grads, strict=True):
            p -= move * g / length
        out = real(*args)
        for p, g in zip(policy.trainable_parameters(), grads, strict=True):
            p += move * g / length
        return out

    policy._predict = predict  # type: ignore[method-assign]
    try:
        return policy.score(rollouts)["logp"].sum()
    finally:
        del policy._predict  # type: ignore[method-assign]


def test_divergence_from_the_reference_is_exact() -> None:
    """The closed form is the Monte Carlo mean of the log-ratio; the reference is the model with its adapters off."""
    policy = policy_of("sd3", lora=LORA)
    base = policy_of("sd3")
    spec = sampling(3, reduce="sum")
    reference = Reference(policy)
    reference._weights = None  # adapters that do something, and a reference without them all the same
    rollouts = policy.rollout(prompts_of(policy)[:1], [[1, 2]], spec)
    with torch.no_grad():
        rollouts.media["mean_ref"] = reference.means(rollouts)
        torch.testing.assert_close(rollouts.media["mean_ref"], base.means(rollouts))
        closed = policy.score(rollouts, {"kl_ref"})["kl_ref"]
        mean, std = policy.means(rollouts), rollouts["step_std"]
        row, step = 1, 1
        drawn = torch.randn(20000, *policy.shape, generator=torch.Generator().manual_seed(0))
        after = mean[row, step] + std[row, step] * drawn
        many = std[row, step].expand(len(after))
        own, other = (
            mathematics.log_density(after, m[row, step].expand_as(after), many, "sum")
            for m in (mean, rollouts.media["mean_ref"])
        )
        gap = own - other
        error = 4 * float(gap.std()) / math.sqrt(len(gap))
    assert float(closed[row, step]) > 10 * error > 0.0
    assert float(gap.mean()) == pytest.approx(float(closed[row, step]), abs=error)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_loads_in_plain_diffusers(name: str, tmp_path: Path) -> None:
    """Adapters by load_lora_weights, and merged into a pipeline on disk, whose other parts are linked."""
    policy = policy_of(name, lora=LORA)
    base = tmp_path / "base"
    made(name).pipe.save_pretrained(base)
    noise = torch.randn(1, *policy.shape, generator=torch.Generator().manual_seed(3))
    draw = {"name": name, "noise": noise, "prompt": "a door", "count": 2, "guidance": 1.0}
    trained, before = pictures_of(policy.pipe, **draw), pictures_of(made(name).pipe, **draw)
    assert float(np.abs(trained - before).max()) > 0.01

    policy.save(tmp_path / "lora")
    assert [f.name for f in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    plain = diffusers.DiffusionPipeline.from_pretrained(base)
    plain.load_lora_weights(tmp_path / "lora")
    np.testing.assert_allclose(pictures_of(plain, **draw), trained, atol=1e-4)

    policy.source = base
    policy.save(tmp_path / "merged", merge=True)
    merged = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(pictures_of(merged, **draw), trained, atol=1e-4)
    weights = next((tmp_path / "merged/vae").glob("*.safetensors"))
    assert weights.stat().st_nlink == 2
    again = DiffusersPolicy.load(DiffusersSpec.model_validate(
        {**spec_of(name).model_dump(exclude={"init", "name"}), "name": str(tmp_path / "merged")}
    ))  # fmt: skip
    with torch.no_grad():
        rollouts = policy.rollout(prompts_of(policy), SEEDS, sampling())
        torch.testing.assert_close(again.score(rollouts)["logp"], rollouts["logp_old"], atol=1e-4, rtol=1e-4)


def test_without_adapters_the_whole_pipeline_is_saved(tmp_path: Path) -> None:
    policy = policy_of("sd3")
    with torch.no_grad():
        policy.model.proj_out.bias += 0.3
    policy.save(tmp_path / "one")
    again = DiffusersPolicy.load(
        DiffusersSpec(name=str(tmp_path / "one"), device="cpu", height=16, width=16, max_sequence_length=32)
    )
    first, second = (p.rollout(prompts_of(p), SEEDS, sampling()) for p in (policy, again))
    assert torch.equal(first.media["states"], second.media["states"])
    assert again.source == tmp_path / "one"
    twin = policy.copy_frozen()
    assert not twin.trainable_parameters() and torch.equal(twin.score(first)["logp"], policy.score(first)["logp"])


def test_half_precision_weights_and_full_precision_states() -> None:
    policy = DiffusersPolicy.load(spec_of("sd3", dtype="bfloat16", lora=LORA, offload=True))
    rollouts = policy.rollout(prompts_of(policy), SEEDS, sampling(guidance=2.0))
    assert policy.pipe.text_encoder.dtype == torch.bfloat16 == policy.pipe.transformer.dtype
    assert policy.pipe.vae.dtype == torch.float32 == rollouts.media["states"].dtype == rollouts["logp_old"].dtype
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    again = policy.score(rollouts)["logp"].detach()
    assert float((again - rollouts["logp_old"]).abs().max()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_pictures_become_latents(name: str) -> None:
    policy = made(name)
    shape = (5, 16, 16, 3) if name == "wan" else (32, 32, 3) if name == "sana" else (16, 16, 3)
    clean = [policy.encode_completion(np.full(shape, k / 3)) for k in range(3)]
    assert all(tuple(c.shape) == policy.shape for c in clean)
    assert float((clean[0] - clean[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["sd3", "sd"])
def test_supervised_learning(name: str) -> None:
    policy = policy_of(name)
    clean = [policy.encode_completion(np.full((16, 16, 3), k / 3)) for k in range(3)]
    prompts = [policy.encode(f"grey {k}") for k in range(3)]
    assert torch.equal(policy.sft_loss(prompts, clean, 4), policy.sft_loss(prompts, clean, 4))
    optimizer = torch.optim.Adam(policy.trainable_parameters(), 1e-2)
    losses = []
    for step in range(15):
        optimizer.zero_grad()
        loss = policy.sft_loss(prompts * 2, clean * 2, step % 3)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:3])


def test_levels_are_the_pipelines_own_and_shift_moves_them_further() -> None:
    policy = policy_of("sd3")
    own = policy.levels(Denoising(6))
    policy.pipe.scheduler.set_timesteps(6)
    torch.testing.assert_close(own, policy.pipe.scheduler.sigmas)
    moved = policy.levels(Denoising(6, shift=2.0))
    torch.testing.assert_close(moved, 2 * own / (1 + own))
    solver = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    same = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    same.set_timesteps(6)
    torch.testing.assert_close(schedule_of(solver).grid(6, 1.0, {}).levels.float(), same.sigmas)
    pndm = diffusers.PNDMScheduler.from_config(policy_of("sd").pipe.scheduler.config)
    torch.testing.assert_close(schedule_of(pndm).grid(6, 1.0, {}).levels.float(), policy_of("sd").levels(Denoising(6)))


def test_schedulers_that_do_not_fit_are_refused() -> None:
    config = policy_of("sd").pipe.scheduler.config
    for change, told in (
        ({"clip_sample": True}, "clip_sample=true"),
        ({"rescale_betas_zero_snr": True}, "ends in pure noise"),
    ):
        with pytest.raises(PolicyError, match=told):
            schedule_of(diffusers.DDIMScheduler.from_config(config, **change))
    with pytest.raises(PolicyError, match="is neither of flow matching nor of diffusion"):
        schedule_of(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(PolicyError, match=r"denoise\.shift moves"):
        policy_of("sd").levels(Denoising(4, shift=2.0))


def test_a_pipeline_that_is_not_known(tmp_path: Path) -> None:
    pipe = SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace()))
    with pytest.raises(PolicyError, match="SimpleNamespace is not known; known are StableDiffusion3Pipeline") as told:
        architecture_of(pipe, spec_of("sd3"))
    assert "model.architecture=FILE.py:CLASS" in (told.value.hint or "")
    file = tmp_path / "mine.py"
    file.write_text(
        "from coterie.policies.diffusers.architectures import Architecture\nclass Mine(Architecture):\n    pass\n"
    )
    assert type(architecture_of(pipe, spec_of("sd3", architecture=f"{file}:Mine"))).__name__ == "Mine"
    for written, message in (("mine:Mine", "is written FILE.py:CLASS"), (f"{file}:Other", "has no class 'Other'")):
        with pytest.raises(PolicyError, match=message):
            architecture_of(pipe, spec_of("sd3", architecture=written))


def test_mistakes_have_a_mend(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"no model_index\.json"):
        DiffusersPolicy.load(DiffusersSpec(name=str(tmp_path)))
    with pytest.raises(PolicyError, match="no such folder"):
        DiffusersPolicy.load(DiffusersSpec(name="./nowhere"))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(PolicyError, match="cannot load the pipeline"):
        DiffusersPolicy.load(DiffusersSpec(name=str(tmp_path)))
    with pytest.raises(PolicyError, match="there is no tiny pipeline 'sd4'"):
        DiffusersPolicy.load(spec_of("sd4"))
    with pytest.raises(PolicyError, match="multiples of 4"):
        policy_of("sd3", height=18)
    with pytest.raises(PolicyError, match="4n \\+ 1 frames"):
        policy_of("wan", frames=6)
    with pytest.raises(PolicyError, match="the prompt is a list"):
        policy_of("sd3").encode([{"role": "user", "content": "x"}])
    with pytest.raises(PolicyError, match="gives latents of"):
        policy_of("sd3").encode_completion(np.zeros((8, 8, 3)))
    with pytest.raises(PolicyError) as told:
        policy_of("sd3", lora={"target_modules": ["nothing_like_it"]})
    assert told.value.where == "model.lora.target_modules"
    policy = policy_of("sd3", lora=LORA)
    policy.save(tmp_path / "lora")
    with pytest.raises(PolicyError, match="holds adapters, and no pipeline"):
        DiffusersPolicy.load(DiffusersSpec(name=str(tmp_path / "lora")))
    assert policy.decode(policy.encode("a ü 红")) == "a ü 红"
