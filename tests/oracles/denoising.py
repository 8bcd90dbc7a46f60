"""Denoising steps, their log-probs and their divergences in plain float64 loops, from the methods' formulas.

Noise level s from 1 to 0, x_s = (1 - s) x0 + s n, the network gives v = n - x0; one sample at a time, a list of
numbers.
"""

from __future__ import annotations

import math


def schedule(steps: int, shift: float = 1.0) -> list[float]:
    out = []
    for i in range(steps + 1):
        s = 1 - i / steps
        out.append(shift * s / (1 + (shift - 1) * s))
    return out


def flow_sde(x, v, s, t, cap, noise):
    """Flow-GRPO in its score form: mean = x + v dt - g^2/2 score dt, score = -(x - (1 - s) x0)/s^2."""
    g = noise * math.sqrt(s / (1 - (cap if s == 1 else s)))
    dt = t - s
    mean = []
    for a, b in zip(x, v, strict=True):
        clean = a - s * b
        score = -(a - (1 - s) * clean) / s**2
        mean.append(a + b * dt - 0.5 * g**2 * score * dt)
    return mean, g * math.sqrt(-dt)


def dance_sde(x, v, s, t, cap, noise):
    dt = t - s
    mean = []
    for a, b in zip(x, v, strict=True):
        score = -(a - (1 - s) * (a - s * b)) / s**2
        mean.append(a + b * dt - 0.5 * noise**2 * score * dt)
    return mean, noise * math.sqrt(-dt)


def cps(x, v, s, t, cap, noise):
    std = t * math.sin(noise * math.pi / 2)
    mean = []
    for a, b in zip(x, v, strict=True):
        clean, noisy = a - s * b, a + (1 - s) * b
        mean.append((1 - t) * clean + math.sqrt(max(t * t - std * std, 0.0)) * noisy)
    return mean, std


def sage_sde(x, v, s, t, cap, noise):
    variance = max(noise**2 * (-(s - t) + math.log((1 - t) / (1 - min(s, 1 - 3e-3)))), 0.0)
    mean = []
    for a, b in zip(x, v, strict=True):
        score = -(a - (1 - s) * (a - s * b)) / s**2
        mean.append(a + b * (t - s) + 0.5 * variance * score)
    return mean, math.sqrt(variance)


def ode(x, v, s, t, cap):
    return [a + b * (t - s) for a, b in zip(x, v, strict=True)], 0.0


def ddpo(x, e, abar, after, eta):
    """DDPO's own step, at coefficients sqrt(abar) and sqrt(1 - abar), from the predicted noise e."""
    std = eta * math.sqrt((1 - after) / (1 - abar) * (1 - abar / after))
    mean = []
    for a, b in zip(x, e, strict=True):
        clean = (a - math.sqrt(1 - abar) * b) / math.sqrt(abar)
        mean.append(math.sqrt(after) * clean + math.sqrt(max(1 - after - std * std, 0.0)) * b)
    return mean, std


def ddim(x, v, s, t, cap, noise):
    """The same, brought from a flow's coefficients to DDPO's by scaling and back. t > 0 and s < 1."""
    scale, scale_after = math.hypot(1 - s, s), math.hypot(1 - t, t)
    abar, after = ((1 - s) / scale) ** 2, ((1 - t) / scale_after) ** 2
    mean, std = ddpo([a / scale for a in x], [a + (1 - s) * b for a, b in zip(x, v, strict=True)], abar, after, noise)
    return [m * scale_after for m in mean], std * scale_after


STEPS = {"flow_sde": flow_sde, "dance_sde": dance_sde, "cps": cps, "sage_sde": sage_sde, "ddim": ddim}


def log_density(after, mean, std, reduce="mean"):
    total = 0.0
    for a, m in zip(after, mean, strict=True):
        if reduce == "unscaled":
            total -= (a - m) ** 2
        else:
            total += -((a - m) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))
    return total if reduce == "sum" else total / len(mean)


def divergence(mean, other, std, reduce="mean"):
    total = 0.0
    for m, o in zip(mean, other, strict=True):
        total += (m - o) ** 2 / (2 * std**2)
    return total if reduce == "sum" else total / len(mean)


def guarded(logp, logp_old, mean, mean_old, std):
    """GRPO-Guard's ratio of one step."""
    gap = sum((m - o) ** 2 for m, o in zip(mean, mean_old, strict=True)) / len(mean) / (2 * std**2)
    return math.exp((logp - logp_old + gap) * std)


def step_norm(rewards, groups, mask, eps=1e-4):
    """TempFlow-GRPO: among rollouts of a group whose first decision is at the same place, ddof 0."""
    first = [next((t for t, on in enumerate(row) if on), len(row)) for row in mask]
    out = []
    for i in range(len(rewards)):
        mine = [rewards[j] for j in range(len(rewards)) if groups[j] == groups[i] and first[j] == first[i]]
        mean = sum(mine) / len(mine)
        std = math.sqrt(sum((r - mean) ** 2 for r in mine) / len(mine))
        out.append(0.0 if max(mine) == min(mine) else (rewards[i] - mean) / (std + eps))
    return out


def weigh_noise(std, mask, weights):
    """Each decision's weight times its noise, over the mean noise of decisions with weight."""
    rows, width = len(mask), len(mask[0])
    live = [(i, t) for i in range(rows) for t in range(width) if mask[i][t] and weights[i] != 0]
    mean = sum(std[i][t] for i, t in live) / max(len(live), 1)
    out = [[0.0] * width for _ in range(rows)]
    for i, t in live:
        out[i][t] = weights[i] * std[i][t] / mean
    return out


def window(iteration, steps, size, stride, every, left_out):
    """MixGRPO's window at a training iteration: it slides on and begins again where it would not fit."""
    first = 0
    for _ in range(iteration // every):
        first += stride
        if first + size > steps - left_out:
            first = 0
    return list(range(first, first + size))
