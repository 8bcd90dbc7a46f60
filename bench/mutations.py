"""Does the test suite notice a wrong sign? Apply one small mistake at a time to a copy of the sources and run the tests.

    python bench/mutations.py            all mutations
    python bench/mutations.py grpo kl    those whose name contains a word

Each mutation must be killed (some test fails). Exits 1 if one survives or no longer applies to the sources.
"""

# ruff: noqa: E501 -- one mutation a line reads best

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CREDIT = ("tests/credit",)
OBJECTIVES = ("tests/objectives",)
SHAPING = ("tests/rewards/shaping",)
SELECTION = ("tests/selection",)
TABLE = ("tests/test_columns_rollouts.py",)
KL = ("tests/test_kl_exact.py", "tests/objectives/test_losses.py")
CONFORMANCE = ("tests/test_conformance.py",)


@dataclass(frozen=True)
class Mutation:
    """Replace `old` by `new` in one file; `tests` must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _m(name: str, file: str, old: str, new: str, tests: tuple[str, ...]) -> Mutation:
    return Mutation(name, f"src/coterie/{file}.py", old, new, tests)


GROUP_NORM, LOO, RETURN = "credit/group_norm", "credit/leave_one_out", "credit/whitened_return"
CLIP, CISPO = "objectives/trust_regions/ppo_clip", "objectives/trust_regions/cispo"
REINFORCE, OPMD, KL_TERM = "objectives/losses/reinforce", "objectives/losses/opmd", "objectives/terms/kl"
TOKEN, SEQUENCE, CONSTANT = (f"objectives/aggregations/{n}" for n in ("token", "sequence", "constant"))
R_TOKEN, R_SEQUENCE, R_BOTH = (f"objectives/ratios/{n}" for n in ("token", "sequence", "sequence_token"))
OVERLONG, DYNAMIC = "rewards/shaping/soft_overlong", "selection/dynamic_sampling"

MUTATIONS = [
    # grpo and dr-grpo: advantage
    _m("grpo: sign of the advantage", GROUP_NORM, "rewards - group_mean(rewards, groups)", "group_mean(rewards, groups) - rewards", CREDIT),
    _m("grpo: ddof ignored", GROUP_NORM, "group_std(rewards, groups, ddof)", "group_std(rewards, groups, 0)", CREDIT),
    _m("grpo: ddof default", GROUP_NORM, "ddof: int = 1", "ddof: int = 0", CREDIT),
    _m("grpo: eps default", GROUP_NORM, "eps: float = 1e-4", "eps: float = 1e-6", CREDIT),
    _m("grpo: eps subtracted", GROUP_NORM, "group_std(rewards, groups, ddof) + eps", "group_std(rewards, groups, ddof) - eps", CREDIT),
    _m("grpo: batch std of the centred", GROUP_NORM, "rewards.std(correction=ddof)", "centred.std(correction=ddof)", CREDIT),
    _m("grpo: no exact zero", GROUP_NORM, "torch.where(group_is_constant(rewards, groups), torch.zeros_like(centred), centred)", "centred", CREDIT),
    _m("grpo: batch mean for group mean", "reductions", "return group_sum(x, groups) / group_count(groups, x.dtype)", "return x.mean().expand_as(x)", CREDIT),
    _m("grpo: std without Bessel", "reductions", "(n - ddof).clamp_min(1.0)", "n.clamp_min(1.0)", CREDIT),
    _m("dr-grpo: scales anyway", GROUP_NORM, 'if scale == "none":', 'if scale == "never":', CREDIT),
    # rloo
    _m("rloo: n-1 forgotten", LOO, " * n / (n - 1).clamp_min(1.0)", "", CREDIT),
    _m("rloo: (n-1)/n", LOO, "* n / (n - 1).clamp_min(1.0)", "* (n - 1) / n", CREDIT),
    _m("rloo: no exact zero", LOO, "torch.where(group_is_constant(rewards, groups), torch.zeros_like(advantages), advantages)", "advantages", CREDIT),
    # reinforce++
    _m("reinforce++: statistics over padding", RETURN, "valid = returns[mask]", "valid = returns.flatten()", CREDIT),
    _m("reinforce++: return so far, not to go", RETURN, "step_rewards.flip(-1).cumsum(-1).flip(-1)", "step_rewards.cumsum(-1)", CREDIT),
    _m("reinforce++: gamma dropped", RETURN, "step_rewards[:, t] + gamma * running, running", "step_rewards[:, t] + running, running", CREDIT),
    _m("reinforce++: return stops at tool output", RETURN, "gamma * running, running)", "gamma * running, 0.0 * running)", CREDIT),
    _m("reinforce++: mean kept", RETURN, "(returns - valid.mean())", "returns", CREDIT),
    _m("reinforce++: ddof", RETURN, "valid.var(correction=ddof)", "valid.var(correction=0)", CREDIT),
    _m("reinforce++: variance for std", RETURN, "torch.rsqrt(valid.var(correction=ddof) + eps)", "(valid.var(correction=ddof) + eps).reciprocal()", CREDIT),
    _m("reinforce++: padding has an advantage", RETURN, "torch.where(mask, whitened, torch.zeros_like(whitened))", "whitened", CREDIT),
    _m("reinforce++-baseline: no group mean", RETURN, "centred = rewards - group_mean(rewards, groups)", "centred = rewards", CREDIT),
    # ppo-clip, dapo
    _m("grpo: max for min", CLIP, "torch.minimum(ratio * a", "torch.maximum(ratio * a", OBJECTIVES),
    _m("grpo: no min at all", CLIP, "torch.minimum(ratio * a, ratio.clamp(low, high) * a)", "ratio.clamp(low, high) * a", OBJECTIVES),
    _m("dapo: bounds swapped", CLIP, "low, high = 1.0 - eps_low, 1.0 + eps_high", "low, high = 1.0 - eps_high, 1.0 + eps_low", OBJECTIVES),
    _m("dapo: default bound", CLIP, "eps_high: float = 0.2", "eps_high: float = 0.28", OBJECTIVES),
    _m("ppo: dual clip on the wrong sign", CLIP, "torch.where(a < 0", "torch.where(a > 0", OBJECTIVES),
    _m("ppo: dual clip min", CLIP, "torch.maximum(surrogate, dual * a)", "torch.minimum(surrogate, dual * a)", OBJECTIVES),
    _m("ppo: ratio detached", R_TOKEN, "(logp - logp_old).masked_fill", "(logp.detach() - logp_old).masked_fill", OBJECTIVES),
    _m("ppo: ratio inverted", R_TOKEN, "(logp - logp_old).masked_fill", "(logp_old - logp).masked_fill", OBJECTIVES),
    _m("ppo: ratio unmasked", R_TOKEN, ".masked_fill(~mask, 0.0)", "", OBJECTIVES),
    _m("ppo: ratio unlimited", R_TOKEN, ".clamp(-LOG_LIMIT, LOG_LIMIT)", "", OBJECTIVES),
    _m("metrics: clip fraction on the wrong side", CLIP, "((a > 0) & (r > high)) | ((a < 0) & (r < low))", "((a > 0) & (r < low)) | ((a < 0) & (r > high))", OBJECTIVES),
    # aggregations
    _m("dapo: token mean over padding", TOKEN, "w / active.sum().clamp_min(1.0)", "w / float(mask.numel())", OBJECTIVES),
    _m("dapo: token sum for mean", TOKEN, "return w / active.sum().clamp_min(1.0)", "return w", OBJECTIVES),
    _m("dapo: denominator of all decisions", TOKEN, "active = (w != 0).sum(-1)", "active = mask.sum(-1)", OBJECTIVES),
    _m("dapo: dead groups counted", TOKEN, "groups[active > 0].unique()", "groups.unique()", OBJECTIVES),
    _m("grpo: sequence mean divides by all rows", SEQUENCE, "mean / live.sum().clamp_min(1.0)", "mean / len(live)", OBJECTIVES),
    _m("grpo: sequence sum", SEQUENCE, "mean = w / active.clamp_min(1.0).unsqueeze(-1)", "mean = w", OBJECTIVES),
    _m("grpo: group scope over rows", SEQUENCE, "/ max(live_groups, 1)", "", OBJECTIVES),
    _m("dr-grpo: padded width", CONSTANT, "(budget if length is None else length)", "mask.shape[1]", OBJECTIVES),
    _m("dr-grpo: rows dropped from the count", CONSTANT, "live.clamp_min(1.0) * ", "", OBJECTIVES),
    _m("aggregation: mask forgotten", TOKEN, "w = finite_or_zero(per_decision(weights, mask), mask)", "w = per_decision(weights, mask)", CONFORMANCE),
    # gspo
    _m("gspo: sum for mean of log-ratios", R_SEQUENCE, "masked_mean(logp - logp_old, mask)", "masked_mean(logp - logp_old, mask) * mask.sum(-1)", OBJECTIVES),
    _m("gspo: mean over the padded width", "reductions", "masked_sum(x, mask) / mask.sum(-1).clamp_min(1).to(x.dtype)", "masked_sum(x, mask) / x.shape[-1]", OBJECTIVES),
    _m("gspo: detached", R_SEQUENCE, "masked_mean(logp - logp_old", "masked_mean(logp.detach() - logp_old", OBJECTIVES),
    _m("gspo-token: sequence level not detached", R_BOTH, "masked_mean(logp.detach() - logp_old", "masked_mean(logp - logp_old", OBJECTIVES),
    _m("gspo-token: own gradient gone", R_BOTH, "(logp - logp.detach())", "(logp.detach() - logp.detach())", OBJECTIVES),
    # cispo
    _m("cispo: weight not detached", CISPO, "weight = ratio.detach().clamp", "weight = ratio.clamp", OBJECTIVES),
    _m("cispo: lower bound at the top", CISPO, "clamp(min_ratio, max_ratio)", "clamp(max_ratio, max_ratio)", OBJECTIVES),
    _m("cispo: bound as a distance", CISPO, "clamp(min_ratio, max_ratio)", "clamp(min_ratio, 1 + max_ratio)", OBJECTIVES),
    _m("cispo: padding", CISPO, "finite_or_zero(logp, mask)", "logp", OBJECTIVES),
    # reinforce, rec
    _m("reinforce: sign", REINFORCE, "return -w * a", "return w * a", OBJECTIVES),
    _m("rec: weight carries gradient", REINFORCE, "r = token(logp.detach()", "r = token(logp", OBJECTIVES),
    _m("rec: one side swapped", REINFORCE, '"one_side": (up & (r <= 1 + eps_high)) | (down & (r >= 1 - eps_low))', '"one_side": (down & (r <= 1 + eps_high)) | (up & (r >= 1 - eps_low))', OBJECTIVES),
    _m("rec: ring bounds swapped", REINFORCE, "(up & (r <= 1 - ring_low)) | (down & (r >= 1 + ring_high))", "(down & (r <= 1 - ring_low)) | (up & (r >= 1 + ring_high))", OBJECTIVES),
    _m("rec: two side open above", REINFORCE, "inside = (r >= 1 - eps_low) & (r <= 1 + eps_high)", "inside = r >= 1 - eps_low", OBJECTIVES),
    _m("rec: ratio weight ignored", REINFORCE, 'if weight == "ratio"', 'if weight == "never"', OBJECTIVES),
    _m("asymre: shift lowers the advantage", "credit/baseline_shift", "advantages + delta", "advantages - delta", CREDIT),
    # opmd
    _m("opmd: 1/2 forgotten", OPMD, "return (policy + 0.5 * tau * d.sum(-1) ** 2)", "return (policy + tau * d.sum(-1) ** 2)", OBJECTIVES),
    _m("opmd: sum of squares for square of sum", OPMD, "d.sum(-1) ** 2", "(d * d).sum(-1)", OBJECTIVES),
    _m("opmd: pushes away", OPMD, "(policy + 0.5 * tau * d.sum(-1) ** 2)", "(policy - 0.5 * tau * d.sum(-1) ** 2)", OBJECTIVES),
    _m("opmd: divisor", OPMD, "d.sum(-1) ** 2) / (1.0 + tau)", "d.sum(-1) ** 2)", OBJECTIVES),
    _m("opmd: token square detached", OPMD, "0.5 * tau * d * d", "0.5 * tau * d * d.detach()", OBJECTIVES),
    _m("opmd: log sum exp for log mean exp", "credit/log_mean_exp", "group_mean(((rewards", "group_sum(((rewards", CREDIT),
    _m("opmd: tau forgotten outside", "credit/log_mean_exp", "top + tau * group_mean", "top + group_mean", CREDIT),
    _m("opmd: baseline sign", "credit/log_mean_exp", "rewards - soft", "soft - rewards", CREDIT),
    # kl
    _m("kl: k1 sign", "kl", "return d\n", "return -d\n", KL),
    _m("kl: k2 without 1/2", "kl", "0.5 * d * d", "d * d", KL),
    _m("kl: k3 with the other ratio", "kl", "(-d).clamp(max=20.0).exp() - 1.0 + d", "d.clamp(max=20.0).exp() - 1.0 - d", KL),
    _m("kl: k3 without the linear part", "kl", "- 1.0 + d", "- 1.0", KL),
    _m("kl: reference minus policy", KL_TERM, "logp - logp_ref", "logp_ref - logp", KL),
    _m("kl: importance without gradient", KL_TERM, "token(logp, logp_old, mask)", "token(logp, logp_old, mask).detach()", KL),
    _m("kl: default estimator", KL_TERM, '= "k3"', '= "k2"', KL),
    _m("kl: padding", KL_TERM, "finite_or_zero(logp - logp_ref, mask)", "logp - logp_ref", KL),
    _m("kl: added to the reward", "rewards/shaping/kl_reward", "token_rewards - coef", "token_rewards + coef", SHAPING),
    _m("entropy: sign", "objectives/terms/entropy_bonus", "return -coef", "return coef", OBJECTIVES),
    # dapo: reward and sampling
    _m("overlong: sign", OVERLONG, "rewards - factor", "rewards + factor", SHAPING),
    _m("overlong: no cap", OVERLONG, "over.clamp(0.0, 1.0)", "over.clamp_min(0.0)", SHAPING),
    _m("overlong: starts at the end", OVERLONG, "(longest - window)", "longest", SHAPING),
    _m("overlong: scaled by the budget", OVERLONG, ") / window", ") / longest", SHAPING),
    _m("overlong: default cache", OVERLONG, "longest // 5", "longest // 4", SHAPING),
    _m("dynamic sampling: keeps the dead", DYNAMIC, "(~group_is_constant(value, groups))", "group_is_constant(value, groups)", SELECTION),
    _m("dynamic sampling: reads shaped rewards", DYNAMIC, 'metric != "rewards" else rewards', 'metric == "correct" else rewards', SELECTION),
    _m("dynamic sampling: drops the whole batch or nothing", "reductions", "group_extreme(x, groups, True) == group_extreme(x, groups, False)", "(x.max() == x.min()).expand(x.shape)", SELECTION),
    _m("overlong filtering: keeps the truncated", "selection/drop_truncated", "(~truncated)", "truncated", SELECTION),
    # machinery
    _m("labels of groups taken as positions", "reductions", "return inverse, len(unique)", "return groups.clamp(0, len(unique) - 1), len(unique)", CREDIT),
    _m("table: groups not renumbered", "rollouts", 'pieces.append(p["groups"] + shift)', 'pieces.append(p["groups"])', TABLE),
    _m("table: sizes not bound", "columns", "dims.update(", "dict().update(", TABLE),
    _m("metrics: mean of means", "metrics", "total, count = float(value[over].sum()), float(over.sum())", "total, count = float(value[over].mean()), 1.0", TABLE),
    _m("schedules: cosine upside down", "schedules", "0.5 - 0.5 * math.cos", "0.5 + 0.5 * math.cos", ("tests/test_schedules.py",)),
]  # fmt: skip


def verdict(mutation: Mutation) -> str:
    """killed, SURVIVED, or GONE when the text to replace is not there exactly once."""
    source = (ROOT / mutation.file).read_text()
    if source.count(mutation.old) != 1:
        return f"GONE ({source.count(mutation.old)} places)"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "src"
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / mutation.file).write_text(source.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode in (0, 1):
        return "killed" if done.returncode else "SURVIVED"
    return f"BROKEN (pytest exit {done.returncode})\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(w in m.name for w in words)]
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        verdicts = list(pool.map(verdict, chosen))
    for mutation, outcome in zip(chosen, verdicts, strict=True):
        print(f"{outcome:<10} {mutation.name:<52} {mutation.file.removeprefix('src/coterie/')}")
    killed = verdicts.count("killed")
    print(f"{killed} of {len(chosen)} killed in {time.monotonic() - began:.0f} s")
    return int(not chosen or killed < len(chosen))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
