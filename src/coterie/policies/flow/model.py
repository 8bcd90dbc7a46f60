"""A small flow transformer: patches of an image, modulated by noise level and class (arXiv:2212.09748)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coterie.policies.flow.spec import FlowShape

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TYPE = "coterie_flow"
FREQUENCIES = 16


class FlowTransformer(nn.Module):
    """Predicts the velocity v = n - x0 of a sample [N,*shape] at noise level [N], given a class [N].

    `classes` are the prompts it knows, by name; the class after the last is "no prompt". With `told` it also reads a
    sample that it is to make better, beside the state: 0 everywhere is none. A picture may be smaller than `shape`; its
    patches then stand where those of a whole picture would, with positions between the learned ones.
    """

    def __init__(self, shape: Sequence[int], classes: Sequence[str], size: FlowShape, told: bool = False) -> None:
        super().__init__()
        self.shape, self.classes, self.size, self.told = tuple(shape), tuple(classes), size, told
        positions, numbers = _patches(self.shape, size.patch)
        self.enter = nn.Linear(numbers * (2 if told else 1), size.width)
        self.position = nn.Parameter(torch.randn(positions, size.width) * 0.02)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.prompt = nn.Embedding(len(self.classes) + 1, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.scale = nn.Linear(size.width, 2 * size.width)
        self.leave = nn.Linear(size.width, numbers)
        for last in (self.scale, self.leave):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @property
    def unconditional(self) -> int:
        """The class that stands for no prompt."""
        return len(self.classes)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor, told: Tensor | None = None) -> Tensor:
        """x [N,*shape], sigma [N], condition [N] int, told [N,*shape] -> velocity [N,*shape]"""
        level = self.level(_waves(sigma, FREQUENCIES).to(self.enter.weight.dtype))
        given = nn.functional.silu(level + self.prompt(condition))
        parts = [_cut(part.to(self.enter.weight.dtype), self.size.patch) for part in (x, told) if part is not None]
        hidden = self.enter(torch.cat(parts, -1)) + self._positions(x.shape[1:])
        for block in self.blocks:
            hidden = block(hidden, given)
        hidden = _modulate(_plain_norm(hidden), *self.scale(given).unsqueeze(1).chunk(2, -1))
        return _join(self.leave(hidden), x.shape[1:], self.size.patch)

    def _positions(self, shape: Sequence[int]) -> Tensor:
        """The positions of the patches of a picture of that shape. [positions,width]"""
        if tuple(shape) == self.shape:
            return self.position
        rows, columns = (side // self.size.patch for side in self.shape)
        whole = self.position.view(rows, columns, -1).permute(2, 0, 1)
        return shrunk(whole, [side // self.size.patch for side in shape]).flatten(1).T

    def save(self, folder: str | Path) -> None:
        from safetensors.torch import save_file

        config = {
            "type": TYPE,
            "shape": self.shape,
            "classes": self.classes,
            "told": self.told,
            **self.size.model_dump(),
        }
        (Path(folder) / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_file({n: p.detach().contiguous() for n, p in self.state_dict().items()}, Path(folder) / WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path, config: dict[str, Any]) -> FlowTransformer:
        """From a folder that `save` wrote, and its config."""
        from safetensors.torch import load_file

        size = FlowShape.model_validate({k: v for k, v in config.items() if k in FlowShape.model_fields})
        model = cls(config["shape"], config["classes"], size, config.get("told", False))
        weights = load_file(Path(folder) / WEIGHTS)
        dtype = next(iter(weights.values())).dtype
        model.to(dtype).load_state_dict(weights)
        return model


class Block(nn.Module):
    """Attention and a two-layer perceptron, each shifted, scaled and gated by what is given; nothing at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.given = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.given.weight)
        nn.init.zeros_(self.given.bias)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        a, b, c, d, e, f = self.given(given).unsqueeze(1).chunk(6, -1)
        x = x + c * self._attend(_modulate(_plain_norm(x), a, b))
        return x + f * self.down(nn.functional.gelu(self.up(_modulate(_plain_norm(x), d, e))))

    def _attend(self, x: Tensor) -> Tensor:
        n, positions, width = x.shape
        if positions == 1:
            return self.out(self.qkv(x).chunk(3, -1)[2])
        q, k, v = self.qkv(x).view(n, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, positions, width))


def shrunk(pictures: Tensor, shape: Sequence[int]) -> Tensor:
    """Pictures [N,h,w] at a smaller size, by the means of what each place covers. [N,*shape]"""
    return nn.functional.interpolate(pictures.unsqueeze(1), size=tuple(shape), mode="area").squeeze(1)


def _plain_norm(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:])


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _waves(sigma: Tensor, count: int) -> Tensor:
    """[N] -> [N, 2 count]"""
    rates = torch.exp(torch.arange(count, dtype=sigma.dtype, device=sigma.device) * (math.log(1000.0) / count))
    angles = sigma.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def _patches(shape: Sequence[int], patch: int) -> tuple[int, int]:
    """How many positions there are, and the numbers in each. Raises ValueError where patches do not fit."""
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) != 2 or any(side % patch for side in shape):
        raise ValueError(f"samples of shape {tuple(shape)} are not cut into patches of {patch} by {patch}")
    return shape[0] // patch * (shape[1] // patch), patch * patch


def _cut(x: Tensor, patch: int) -> Tensor:
    """[N,*shape] -> [N,positions,numbers]"""
    if x.dim() == 2:
        return x.unsqueeze(1)
    n, h, w = x.shape
    return x.view(n, h // patch, patch, w // patch, patch).transpose(2, 3).reshape(n, -1, patch * patch)


def _join(x: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """What `_cut` took apart."""
    if len(shape) == 1:
        return x.squeeze(1)
    h, w = shape
    return x.view(-1, h // patch, w // patch, patch, patch).transpose(2, 3).reshape(-1, h, w)
