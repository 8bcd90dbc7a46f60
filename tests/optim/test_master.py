"""bfloat16 parameters learn from updates smaller than their rounding, and resume exactly."""

import torch
from safetensors.torch import load_file

from coterie.optim.master import MasterWeights, optimize


def _train(optimizer, parameter, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def test_small_updates_add_up_only_with_master_weights():
    plain = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    _train(torch.optim.SGD([plain], lr=1e-3), plain, 100)
    assert torch.equal(plain.data, torch.ones(3, dtype=torch.bfloat16))

    kept = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = optimize([kept], lambda p: torch.optim.SGD(p, lr=1e-3))
    assert isinstance(optimizer, MasterWeights)
    _train(optimizer, kept, 100)
    torch.testing.assert_close(optimizer.masters[0], torch.full((3,), 0.9), atol=1e-5, rtol=0)
    assert kept.dtype == torch.bfloat16 and torch.equal(kept.data, optimizer.masters[0].bfloat16())


def test_float32_parameters_need_none():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert isinstance(optimize([parameter], lambda p: torch.optim.SGD(p, lr=0.1)), torch.optim.SGD)


def test_state_goes_on_exactly():
    def fresh():
        parameter = torch.nn.Parameter(torch.linspace(0.1, 1.0, 5).bfloat16())
        return parameter, optimize([parameter], lambda p: torch.optim.AdamW(p, lr=1e-3))

    whole, one = fresh()
    _train(one, whole, 10)
    half, two = fresh()
    _train(two, half, 4)
    state = {k: v for k, v in two.state_dict().items()}
    again, three = fresh()
    three.load_state_dict(state)
    again.data.copy_(half.data)
    _train(three, again, 6)
    assert torch.equal(whole.data, again.data) and torch.equal(one.masters[0], three.masters[0])


def test_weights_that_a_warm_start_moved_stay_moved(tmp_path):
    """The first step of the run goes on from the warm start's weights, not from those the model was loaded with."""
    from coterie.api import start
    from coterie.recipe import resolve

    tiny = ["task={sort: {digits: 2, train: 20, held_out: 8, dense: true}}", "evaluation.prompts=8", "steps=1",
            "threads=1",
            "model={init: {layers: 1, width: 16, heads: 2}, dtype: bfloat16}", "draw.prompts=2", "rollout.max_tokens=4",
            "warm_start.steps=8", "warm_start.lr=1e-2", "optimizer.lr=1e-6", "checkpoint.every=1",
            "log.rollouts_every=0"]  # fmt: skip
    run = start(resolve(overrides=tiny), tmp_path / "run", quiet=True)
    saved = [load_file(run.path / f"checkpoints/step-00000{n}/policy/model.safetensors") for n in (0, 1)]
    before, after = (torch.cat([w.float().flatten() for w in weights.values()]) for weights in saved)
    assert run.last["update/optimizer_steps"] == 1
    assert float((after - before).abs().max()) < 1e-3  # a step at 1e-6 moves little; undoing 8 at 1e-2 would move a lot
