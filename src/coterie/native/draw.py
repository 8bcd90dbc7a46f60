"""The function of `draw.c` on tensors. `suits` says for which."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from coterie.native import functions, in_lines, pointer

WIDEST = 2**20
"""As in `draw.c`."""


def suits(logits: Tensor) -> bool:
    """Whether the compiled function is there and takes these: on a CPU, float32 or bfloat16."""
    return logits.shape[-1] <= WIDEST and logits.device.type == "cpu" and functions(logits.dtype) is not None


def draw(
    logits: Tensor, temperature: float, uniforms: Tensor, entropy: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One token a row by inverse CDF, as `coterie.rollout.engines.sampling.draw` describes it, and all of the
    vocabulary may be drawn: logits [n,V], uniforms [n] float64 -> tokens [n] int64, log-probs and entropies [n]
    float32.
    """
    n, width = logits.shape
    logits, uniforms = in_lines(logits), uniforms.double().contiguous()
    tokens = torch.empty(n, dtype=torch.int64)
    logp, entropies = torch.empty(n), torch.empty(n) if entropy else None
    function = functions(logits.dtype)
    assert function is not None
    function.draw(
        torch.get_num_threads(), n, width, logits.stride(0), logits.data_ptr(), temperature, uniforms.data_ptr(),
        tokens.data_ptr(), logp.data_ptr(), pointer(entropies),
    )  # fmt: skip
    return tokens, logp, entropies


def declare(do: ctypes.CDLL) -> None:
    """The type of the function."""
    do.draw.argtypes = [c_int, *[c_int64] * 3, c_void_p, c_float, *[c_void_p] * 4]
    do.draw.restype = None
