from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import inputs
from oracles.group_norm import group_norm as group_norm_oracle
from oracles.leave_one_out import leave_one_out as leave_one_out_oracle
from oracles.log_mean_exp import log_mean_exp as log_mean_exp_oracle
from oracles.whitened_return import whitened_return as whitened_return_oracle

from coterie.credit import baseline_shift, group_norm, leave_one_out, log_mean_exp, whitened_return

DTYPES = [(torch.float64, 1e-12), (torch.float32, 2e-5)]


def near(got: torch.Tensor, want: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=tolerance, atol=tolerance)


def R(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ONE_GROUP = torch.zeros(4, dtype=torch.long)


class TestNumbersOfTheSources:
    def test_group_norm(self) -> None:
        near(group_norm(R(1, 0, 0, 1), ONE_GROUP), [0.86588, -0.86588, -0.86588, 0.86588], 5e-6)
        near(group_norm(R(1, 0, 0, 0), ONE_GROUP), [1.4997, -0.4999, -0.4999, -0.4999], 5e-5)
        near(group_norm(R(1, 0, 0, 1), ONE_GROUP, scale="none"), [0.5, -0.5, -0.5, 0.5])
        near(group_norm(R(1, 0, 0, 1), ONE_GROUP, ddof=0, eps=0.0), [1.0, -1.0, -1.0, 1.0])

    def test_batch_scale_keeps_the_mean_of_the_group(self) -> None:
        groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        want = [1.402859, -0.46762, -0.46762, -0.46762, 0.46762, 0.46762, 0.46762, -1.402859]
        near(group_norm(R(1, 0, 0, 0, 1, 1, 1, 0), groups, scale="batch_std"), want, 1e-5)

    def test_leave_one_out(self) -> None:
        near(leave_one_out(R(1, 0, 0, 1), ONE_GROUP), [2 / 3, -2 / 3, -2 / 3, 2 / 3])
        near(leave_one_out(R(1, 0, 0, 0), ONE_GROUP), [1, -1 / 3, -1 / 3, -1 / 3])

    def test_log_mean_exp(self) -> None:
        soft = np.log((np.e + 1) / 2)
        near(log_mean_exp(R(1, 0), torch.zeros(2, dtype=torch.long)), [1 - soft, -soft])

    @pytest.mark.parametrize("group_baseline", [False, True])
    def test_reinforce_plus_plus_weighs_long_rollouts_more(self, group_baseline: bool) -> None:
        mask = torch.tensor([[True, True], [True, False]])
        token_rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
        got = whitened_return(
            token_rewards, mask, torch.zeros(2, dtype=torch.long), R(1, 0), group_baseline=group_baseline
        )
        near(got, [[0.57735, 0.57735], [-1.154701, 0.0]], 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", inputs.KINDS)
class TestAgainstOracles:
    @pytest.fixture()
    def numpy_table(self, kind: str) -> dict[str, Any]:
        return inputs.table(kind, seed=1)

    @pytest.fixture()
    def t(self, numpy_table: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        return inputs.tensors(numpy_table, dtype)

    @pytest.mark.oracle("grpo", "dapo", "dr-grpo", "gspo", "gspo-token", "cispo", "opmd", "asymre")
    @pytest.mark.parametrize("scale", ["std", "batch_std", "none"])
    @pytest.mark.parametrize(("ddof", "eps"), [(1, 1e-4), (0, 1e-6), (1, 0.5)])
    def test_group_norm(self, numpy_table: Any, t: Any, tolerance: float, scale: Any, ddof: int, eps: float) -> None:
        want = group_norm_oracle(numpy_table["rewards"], numpy_table["groups"], scale, ddof, eps)
        near(group_norm(t["rewards"], t["groups"], scale=scale, ddof=ddof, eps=eps), want, tolerance)

    @pytest.mark.oracle("rloo")
    def test_leave_one_out(self, numpy_table: Any, t: Any, tolerance: float) -> None:
        want = leave_one_out_oracle(numpy_table["rewards"], numpy_table["groups"])
        near(leave_one_out(t["rewards"], t["groups"]), want, tolerance)

    @pytest.mark.parametrize("tau", [0.1, 1.0, 30.0])
    def test_log_mean_exp(self, numpy_table: Any, t: Any, tolerance: float, tau: float) -> None:
        want = log_mean_exp_oracle(numpy_table["rewards"], numpy_table["groups"], tau)
        near(log_mean_exp(t["rewards"], t["groups"], tau=tau), want, tolerance)

    @pytest.mark.oracle("reinforce++", "reinforce++-baseline")
    @pytest.mark.parametrize("gamma", [1.0, 0.9])
    @pytest.mark.parametrize("group_baseline", [False, True])
    @pytest.mark.parametrize(("ddof", "eps", "dense"), [(1, 1e-8, 0.0), (0, 1e-2, 0.0), (1, 1e-8, 0.1)])
    def test_whitened_return(
        self, numpy_table: Any, t: Any, tolerance: float, gamma: float, group_baseline: bool, ddof: int, eps: float,
        dense: float,
    ) -> None:  # fmt: skip
        names = ("token_rewards", "mask", "groups", "rewards")
        numpy_table["token_rewards"] = numpy_table["token_rewards"] + dense * numpy_table["logp_old"]
        t["token_rewards"] = torch.from_numpy(numpy_table["token_rewards"]).to(t["rewards"].dtype)
        settings = {"gamma": gamma, "group_baseline": group_baseline, "ddof": ddof, "eps": eps}
        want = whitened_return_oracle(*(numpy_table[n] for n in names), **settings)
        near(whitened_return(*(t[n] for n in names), **settings), want, tolerance * 5)


class TestDegenerate:
    """Exact zeros: float rounding of a mean must not leave 1e-8 / eps behind."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.1, -1 / 3, 1e8, 0.0])
    @pytest.mark.parametrize("n", [1, 3, 7])
    def test_equal_rewards_give_exactly_zero(self, dtype: torch.dtype, value: float, n: int) -> None:
        rewards, groups = torch.full((n,), value, dtype=dtype), torch.zeros(n, dtype=torch.long)
        for scale in ("std", "none"):
            assert (group_norm(rewards, groups, scale=scale, eps=1e-12) == 0).all()
        assert (leave_one_out(rewards, groups) == 0).all()
        assert (log_mean_exp(rewards, groups) == 0).all()

    def test_one_group_dead_and_one_alive(self) -> None:
        got = group_norm(torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0]), torch.tensor([4, 4, 4, -1, -1]), scale="batch_std")
        assert (got[:3] == 0).all() and (got[3:] != 0).all()

    def test_whitening_of_equal_returns_and_of_a_single_decision(self) -> None:
        mask = torch.ones(3, 2, dtype=torch.bool)
        token_rewards = torch.tensor([[0.0, 0.1]] * 3)
        groups = torch.tensor([0, 0, 1])
        assert (whitened_return(token_rewards, mask, groups, torch.full((3,), 0.1)) == 0).all()
        single = torch.zeros(3, 2, dtype=torch.bool)
        single[1, 0] = True
        assert (whitened_return(token_rewards, single, groups, torch.rand(3)) == 0).all()
        assert (whitened_return(token_rewards, mask & False, groups, torch.rand(3)) == 0).all()

    def test_gamma_skips_tool_output(self) -> None:
        mask = torch.tensor([[True, False, True], [True, True, True]])
        token_rewards = torch.tensor([[0.0, 9.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        names = (token_rewards, mask, torch.tensor([0, 0]), R(1, 1))
        want = whitened_return_oracle(*(x.numpy() for x in names), gamma=0.5)
        near(whitened_return(*names, gamma=0.5), want)
        assert want[0, 0] == want[1, 1]  # one decision away from the reward in both


rewards_and_groups = st.lists(
    st.tuples(st.floats(-5, 5, allow_subnormal=False), st.integers(-2, 3)), min_size=1, max_size=14
).map(lambda rows: (R(*(r for r, _ in rows)), torch.tensor([g for _, g in rows])))


class TestRelations:
    @pytest.mark.reduction("dr-grpo", "rloo")
    @given(rewards_and_groups)
    def test_dr_grpo_is_leave_one_out_shrunk(self, both: Any) -> None:
        rewards, groups = both
        n = torch.tensor([(groups == g).sum() for g in groups], dtype=torch.float64)
        near(group_norm(rewards, groups, scale="none"), (n - 1) / n * leave_one_out(rewards, groups), 1e-11)

    @pytest.mark.reduction("grpo")
    @given(rewards_and_groups, st.floats(0.1, 8))
    def test_batch_std_is_std_for_one_group_and_one_scale_for_all(self, both: Any, factor: float) -> None:
        rewards, groups = both
        alone = torch.zeros_like(groups)
        near(group_norm(rewards, alone, scale="batch_std"), group_norm(rewards, alone, scale="std"), 1e-11)
        of_all, centred = (group_norm(rewards, groups, scale=s, eps=0.5) for s in ("batch_std", "none"))
        spread = rewards.std() if len(rewards) > 1 else torch.zeros(())
        near(of_all * (spread + 0.5), centred, 1e-11)
        near(group_norm(factor * rewards, groups, scale="batch_std", eps=factor * 0.5), of_all, 1e-9)

    @pytest.mark.reduction("grpo", "dr-grpo", "rloo")
    @given(rewards_and_groups)
    def test_advantages_of_a_group_sum_to_zero(self, both: Any) -> None:
        rewards, groups = both
        for a in (group_norm(rewards, groups, scale="none"), leave_one_out(rewards, groups)):
            for g in groups.unique():
                assert abs(float(a[groups == g].sum())) < 1e-10

    @given(rewards_and_groups)
    def test_log_mean_exp_tends_to_the_mean(self, both: Any) -> None:
        rewards, groups = both
        near(log_mean_exp(rewards, groups, tau=1e7), group_norm(rewards, groups, scale="none"), 1e-5)

    @given(rewards_and_groups)
    def test_log_mean_exp_tends_to_the_maximum(self, both: Any) -> None:
        rewards, groups = both
        top = torch.stack([rewards[groups == g].max() for g in groups])
        near(log_mean_exp(rewards, groups, tau=1e-4), rewards - top, 1e-3)

    @pytest.mark.reduction("asymre")
    @given(rewards_and_groups, st.floats(0, 2))
    def test_baseline_shift_adds_and_zero_is_identity(self, both: Any, delta: float) -> None:
        rewards, groups = both
        a = group_norm(rewards, groups)
        assert torch.equal(baseline_shift(a, delta=0.0), a)
        near(baseline_shift(a, delta=delta), a + delta)
        near(baseline_shift(a.unsqueeze(-1).expand(-1, 3), delta=delta), (a + delta).unsqueeze(-1).expand(-1, 3))

    @pytest.mark.reduction("reinforce++", "reinforce++-baseline")
    @given(st.integers(0, 10_000))
    def test_reinforce_baseline_is_the_whitened_return_of_centred_rewards(self, seed: int) -> None:
        t = inputs.tensors(inputs.table("random", seed))
        centred = group_norm(t["rewards"], t["groups"], scale="none")
        last = torch.from_numpy(inputs.last(t["mask"].numpy()))
        plain = whitened_return(last * centred.unsqueeze(-1), t["mask"], t["groups"], t["rewards"])
        based = whitened_return(t["token_rewards"] * 0, t["mask"], t["groups"], t["rewards"], group_baseline=True)
        near(based, plain, 1e-10)

    @pytest.mark.reduction("reinforce++", "reinforce++-baseline")
    @given(st.integers(0, 10_000))
    def test_whitened_has_mean_0_and_variance_1_over_decisions(self, seed: int) -> None:
        t = inputs.tensors(inputs.table("random", seed))
        a = whitened_return(t["token_rewards"], t["mask"], t["groups"], t["rewards"])[t["mask"]]
        assert abs(float(a.mean())) < 1e-10 and abs(float(a.var()) - 1) < 1e-6
