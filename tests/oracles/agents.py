"""Credit of agents' turns, with plain loops: GiGPO (2505.10978), HGPO (2602.22817), AgentFlow (2510.05592),
SALT (2510.20022), MAPO (2603.06194), EAPO (2511.07327) and UI-S1 (2509.11543)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracles.steps import decisions, steps


def normal(values: Sequence[float], ddof: int, eps: float, scale: str = "std") -> list[float]:
    """Equal values, and one alone, give 0."""
    if max(values) == min(values):
        return [0.0] * len(values)
    mean, n = sum(values) / len(values), len(values)
    if scale == "none":
        return [v - mean for v in values]
    spread = (sum((v - mean) ** 2 for v in values) / (n - ddof)) ** 0.5 if n > ddof else 0.0
    return [(v - mean) / (spread + eps) for v in values]


def within(labels: dict[Any, Any], values: dict[Any, float], ddof: int, eps: float, scale: str) -> dict[Any, float]:
    """Each entry among those of its label."""
    groups = defaultdict(list)
    for entry, label in labels.items():
        groups[label].append(entry)
    out = {}
    for entries in groups.values():
        for entry, a in zip(entries, normal([values[e] for e in entries], ddof, eps, scale), strict=True):
            out[entry] = a
    return out


def turns_of(t: dict[str, Any]) -> list[tuple[int, int]]:
    return [(i, u) for i in range(len(t["mask"])) for u in range(steps(t["turn"], t["mask"], i))]


def returns(t: dict[str, Any], gamma: float) -> dict[tuple[int, int], float]:
    out = {}
    for i, u in turns_of(t):
        last = steps(t["turn"], t["mask"], i)
        out[i, u] = sum(gamma ** (k - u) * float(t["step_rewards"][i, k]) for k in range(u, last))
    return out


def spread_out(t: dict[str, Any], of_turn: dict[tuple[int, int], float], of_episode: Any = None) -> np.ndarray:
    """For each decision what its turn has, and what its episode has."""
    out = np.zeros(t["mask"].shape)
    for i in range(len(out)):
        for s in decisions(t["mask"], i):
            out[i, s] = 0.0 if of_episode is None else of_episode[i]
            out[i, s] += of_turn.get((i, int(t["turn"][i, s])), 0.0)
    return out


def episodes(
    t: dict[str, Any],
    over: str = "turns",
    lone: str = "reward",
    scale: str = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> np.ndarray:
    """AgentFlow, and the first part of GiGPO."""
    out = np.zeros(len(t["rewards"]))
    for group in set(t["groups"].tolist()):
        members = [i for i in range(len(out)) if t["groups"][i] == group]
        count = {i: max(steps(t["turn"], t["mask"], i), 1) if over == "turns" else 1 for i in members}
        entries = [i for i in members for _ in range(count[i])]
        values = normal([float(t["rewards"][i]) for i in entries], ddof, eps, scale)
        for i, value in zip(entries, values, strict=True):
            out[i] = float(t["rewards"][i]) if len(entries) == 1 and lone == "reward" else value
    return out


def gigpo(
    t: dict[str, Any],
    gamma: float = 0.95,
    omega: float = 1.0,
    over: str = "turns",
    lone: str = "reward",
    scale: str = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> np.ndarray:
    key = t["state_key"]
    labels = {(i, u): (int(t["groups"][i]), int(key[i, u])) for i, u in turns_of(t) if key[i, u] >= 0}
    q = returns(t, gamma)
    step = within(labels, q, ddof, eps, scale)
    return spread_out(t, {e: omega * a for e, a in step.items()}, episodes(t, over, lone, scale, ddof, eps))


def hgpo(
    t: dict[str, Any],
    history: int = 2,
    gamma: float = 0.95,
    alpha: float = 1.0,
    drop_ties: float | None = None,
    scale: str = "std",
    ddof: int = 0,
    eps: float = 1e-6,
) -> np.ndarray:
    q, key = returns(t, gamma), t["state_key"]
    votes: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for k in range(1, history + 2):
        labels = {}
        for i, u in turns_of(t):
            past = [int(key[i, v]) for v in range(u - k + 1, u + 1)] if u - k + 1 >= 0 else [-1]
            if min(past) >= 0:
                labels[i, u] = (int(t["groups"][i]), *past)
        of_level = within(labels, q, ddof, eps, scale)
        for entry, a in of_level.items():
            if list(labels.values()).count(labels[entry]) > 1 and (drop_ties is None or abs(a) > drop_ties):
                votes[entry].append(((k + 1) ** alpha, a))
    return spread_out(t, {e: sum(w * a for w, a in v) / (sum(w for w, _ in v) + eps) for e, v in votes.items()})


def salt(t: dict[str, Any], advantages: np.ndarray, history: int = 0, actions: bool = True) -> np.ndarray:
    """Advantages by decision, [B,T]."""
    own: dict[Any, list[int]] = defaultdict(list)
    for i in range(len(t["mask"])):
        for s in decisions(t["mask"], i):
            own[i, int(t["turn"][i, s])].append(s)
    out = np.where(t["mask"], advantages, 0.0)

    def said(i: int, u: int) -> Any:
        return tuple(int(t["tokens"][i, s]) for s in own[i, u]) if actions else 0

    edges = defaultdict(list)
    for i, u in turns_of(t):
        key = [int(k) for k in t["state_key"][i, : steps(t["turn"], t["mask"], i)]]
        if key[u] < 0:
            continue
        after = key[u + 1] if u + 1 < len(key) and key[u + 1] >= 0 else "none"
        past = tuple(said(i, v) if v >= 0 else "none" for v in range(u - history, u))
        edges[int(t["groups"][i]), key[u], said(i, u), after, past].append((i, u))
    for turns in edges.values():
        of_turns = [float(np.mean(out[i, own[i, u]])) for i, u in turns if own[i, u]]
        for i, u in turns if len(turns) > 1 else []:
            advantages_of_turn = sum(of_turns) / len(turns)
            out[i, own[i, u]] = advantages_of_turn
    return out


def mapo(t: dict[str, Any], alpha: float = 0.5, gamma: float = 1.0, ddof: int = 0, eps: float = 1e-6) -> np.ndarray:
    q = returns(t, gamma)
    own = within({(i, u): (int(t["groups"][i]), u) for i, u in q}, q, ddof, eps, "std")
    batch = within(dict.fromkeys(q, 0), q, ddof, eps, "std")
    return spread_out(t, {e: alpha * own[e] + (1 - alpha) * batch[e] for e in q})


def eapo(t: dict[str, Any], gamma: float = 0.995, ddof: int = 0, eps: float = 1e-6) -> np.ndarray:
    r = {(i, u): gamma ** (steps(t["turn"], t["mask"], i) - 1 - u) * float(t["rewards"][i]) for i, u in turns_of(t)}
    return spread_out(t, within({(i, u): int(t["groups"][i]) for i, u in r}, r, ddof, eps, "std"))


def ui_s1_returns(rewards: Sequence[float], gamma: float, exact: float) -> list[float]:
    """Of one episode: backwards, a step that is not exact starts anew and hands nothing on."""
    out, after = [0.0] * len(rewards), 0.0
    for u in range(len(rewards) - 1, -1, -1):
        if rewards[u] < exact:
            out[u], after = rewards[u], 0.0
        else:
            out[u] = after = rewards[u] + gamma * after
    return out


def ui_s1(
    t: dict[str, Any],
    gamma: float = 0.5,
    exact: float = 0.9,
    episode: float = 1.0,
    step: float = 1.0,
    of: str = "turn",
    lone: str = "reward",
    scale: str = "std",
    ddof: int = 1,
    eps: float = 1e-6,
) -> np.ndarray:
    r = {(i, u): float(t["step_rewards"][i, u]) for i, u in turns_of(t)}
    q = {}
    for i in range(len(t["mask"])):
        own = [r[i, u] for u in range(steps(t["turn"], t["mask"], i))]
        q |= {(i, u): value for u, value in enumerate(ui_s1_returns(own, gamma, exact))}
    value = {e: r[e] if of == "turn" else sum(r[f] for f in r if f[0] == e[0]) for e in r}
    owner = {e: int(t["groups"][e[0]]) for e in r}
    whole = within(owner, value, ddof, eps, scale)
    if lone == "reward":
        whole = {e: value[e] if list(owner.values()).count(owner[e]) == 1 else a for e, a in whole.items()}
    part = within({e: (owner[e], e[1]) for e in r}, q, ddof, eps, scale)
    return spread_out(t, {e: episode * whole[e] + step * part[e] for e in r})
