"""Credit where several agents act, with plain loops: Advantage Alignment (2511.19405) and M-GRPO (2511.13288)."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles.steps import decisions, steps


def ad_align(t: dict[str, Any], gamma: float = 0.96, beta: float = 2.0, now: bool = False) -> np.ndarray:
    mask, turn, groups = t["mask"], t["turn"], t["groups"]
    n = len(mask)
    length = [steps(turn, mask, i) for i in range(n)]

    def advantages(rewards: Any) -> list[list[float]]:
        g = [[sum(gamma ** (k - u) * float(rewards[i, k]) for k in range(u, length[i])) for u in range(length[i])]
             for i in range(n)]  # fmt: skip
        out = []
        for i in range(n):
            row = []
            for u in range(length[i]):
                others = [g[j][u] for j in range(n) if j != i and groups[j] == groups[i] and length[j] > u]
                same = all(o == g[i][u] for o in others)
                row.append(0.0 if same else g[i][u] - sum(others) / len(others))
            out.append(row)
        return out

    mine, theirs = advantages(t["step_rewards"]), advantages(t["other_rewards"])
    out = np.zeros(mask.shape)
    for i in range(n):
        for s in decisions(mask, i):
            u = int(turn[i, s])
            if u >= 0:
                so_far = sum(gamma ** (u - k) * mine[i][k] for k in range(u + now))
                weight = so_far if now else gamma * so_far
                out[i, s] = mine[i][u] + beta * weight * theirs[i][u]
    return out


def calls(t: dict[str, Any], i: int) -> int:
    return sum(
        1 for j in range(len(t["groups"])) if (t["groups"][j], t["episode"][j]) == (t["groups"][i], t["episode"][i])
    )


def m_grpo(t: dict[str, Any], eps: float = 1e-6) -> np.ndarray:
    """Calls are repeated until every episode of the group has as many: their product will do."""
    out = np.zeros(len(t["groups"]))
    for group in set(t["groups"].tolist()):
        members = [i for i in range(len(out)) if t["groups"][i] == group]
        every = int(np.lcm.reduce([calls(t, i) for i in members]))
        aligned = [float(t["rewards"][i]) for i in members for _ in range(every // calls(t, i))]
        mean, std = np.mean(aligned), np.std(aligned)
        for i in members:
            out[i] = 0.0 if max(aligned) == min(aligned) else (float(t["rewards"][i]) - mean) / (std + eps)
    return out


def m_grpo_weights(t: dict[str, Any]) -> np.ndarray:
    n = len(t["groups"])
    episodes = len({(int(t["groups"][i]), int(t["episode"][i])) for i in range(n)})
    return np.array([n / episodes / calls(t, i) for i in range(n)])
