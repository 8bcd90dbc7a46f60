"""bfloat16 parameters learn from updates smaller than their rounding, and resume exactly."""

import torch

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
