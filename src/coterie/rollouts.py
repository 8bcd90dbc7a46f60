"""The table: a row per rollout, a column axis of decisions. Everything after the policy works on its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from coterie import columns as vocabulary
from coterie.errors import ShapeError

Value = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Denoising:
    """How denoising steps are taken: what a sampling spec says where decisions are steps and not tokens.

    The noise level falls from 1 to 0 in `steps` steps, moved towards 1 by `shift`. `sampler` names the rule of a step
    and `settings` its values. With `guidance` g the velocity is v(none) + g (v(prompt) - v(none)), where v(none) takes
    no gradient. `stochastic` are the steps that draw noise, None for all; the others follow the ODE, and are no
    decisions. `reduce` says how the log-density of a step's D numbers becomes its log-prob.
    """

    steps: int
    shift: float = 1.0
    guidance: float = 1.0
    sampler: str = "flow_sde"
    settings: tuple[tuple[str, Any], ...] = ()
    shared_noise: bool = False
    """Whether the rollouts of a group start from the same noise."""
    reduce: str = "mean"
    """mean | sum | unscaled"""
    stochastic: tuple[int, ...] | None = None
    keep_means: bool = False
    """Whether the means of the steps are kept, for `mean_gap`."""
    noise_scale: tuple[float, ...] | None = None
    """Factor on the sampler's noise in each step, None for 1."""
    tail: float = 1.0
    """The share taken of the steps after the last that draws noise, with a solver of second order; 1: all, Euler's."""
    resolution: float = 1.0
    """Sides of a picture, as a share of those that the policy draws by itself."""
    matching: bool = False
    """Whether decisions are no steps but draws of noise on the finished sample, at which the velocity is matched."""


@dataclass(frozen=True)
class Sampling:
    """How decisions are drawn. A log-prob belongs to this spec: scoring applies the same one.

    Log-probs are those of the distribution actually sampled from: logits over temperature, cut to the top-k / top-p /
    min-p support (which always contains the sampled token) and renormalised. `temperature=0` is greedy decoding; its
    log-probs are those at temperature 1 over the full support, and it cannot be trained on.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    denoising: Denoising | None = None
    """Of a policy that denoises; the rest of the spec is then of no meaning."""

    @property
    def truncates(self) -> bool:
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    def plain(self) -> dict[str, Any]:
        """Nested plain data, for a checkpoint."""
        return {**asdict(self), "stop": list(self.stop)}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Sampling:
        """What `plain` made plain."""
        denoising = plain["denoising"]
        return Sampling(
            **{
                **plain,
                "stop": tuple(plain["stop"]),
                "denoising": None if denoising is None else Denoising(**denoising),
            }
        )


@dataclass(frozen=True)
class Prompt:
    """What the rollouts of one group answer. `tokens` are the truth; `row` holds the task's columns for the graders."""

    tokens: tuple[int, ...]
    row: Mapping[str, Any] = field(default_factory=dict)
    index: int = -1
    """Stable index in the task's training set; -1 when there is none."""

    def followed_by(self, words: str) -> Any:
        """What was asked, text or conversation, with words behind it."""
        asked = self.row["prompt"]
        if isinstance(asked, str):
            return asked + words
        last = {**asked[-1], "content": asked[-1]["content"] + words}
        return [*asked[:-1], last]


@dataclass
class Rollouts:
    """B rollouts of T decisions. `groups[b]` indexes `prompts`, which are stored once a group, never once a rollout."""

    prompts: list[Prompt]
    columns: dict[str, Value]
    sampling: Sampling = field(default_factory=Sampling)
    texts: list[Any] = field(default_factory=list)
    """Decoded completions, one a row: text, or an array where samples are no text. A view for graders and people; what
    was sampled is what is trained on."""
    media: dict[str, Tensor] = field(default_factory=dict)
    """What only the policy reads, by name, a row each and any shape behind: the states of a denoised sample."""
    episodes: list[Any] = field(default_factory=list)
    """What became of each row in a world of many turns (`coterie.environments.Episode`), for graders."""

    def __post_init__(self) -> None:
        dims: dict[str, int] = {}
        for name, value in self.columns.items():
            vocabulary.check(name, value, dims, reader="Rollouts")
        if self.texts and len(self.texts) != len(self):
            raise ShapeError(f"Rollouts has {len(self)} rows and {len(self.texts)} texts")
        for name, value in self.media.items():
            if len(value) != len(self):
                raise ShapeError(f"Rollouts has {len(self)} rows and {len(value)} of media '{name}'")
        if self.episodes and len(self.episodes) != len(self):
            raise ShapeError(f"Rollouts has {len(self)} rows and {len(self.episodes)} episodes")

    def __len__(self) -> int:
        return int(self.columns["groups"].shape[0])  # type: ignore[union-attr]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]  # type: ignore[return-value]

    def with_columns(self, **new: Value) -> Rollouts:
        """The same rows with some columns added or replaced (shapes are checked)."""
        return replace(self, columns={**self.columns, **new})

    def rows(self, index: Tensor) -> Rollouts:
        """Some rows, with the decision axis trimmed to the longest that remains."""
        index = index.nonzero().squeeze(-1) if index.dtype == torch.bool else index
        picked = {name: _map(value, lambda t: t[index]) for name, value in self.columns.items()}
        if "parent" in picked:
            picked["parent"] = _follow(picked["parent"], index, len(self))  # type: ignore[arg-type]
        if "mask" in picked and len(index):
            used = picked["mask"].any(0).nonzero()  # type: ignore[union-attr]
            width = int(used[-1]) + 1 if len(used) else 1
            picked = {n: _map(v, lambda t, n=n: t[:, :width] if _has_t(n, t) else t) for n, v in picked.items()}
        texts = [self.texts[i] for i in index.tolist()] if self.texts else []
        episodes = [self.episodes[i] for i in index.tolist()] if self.episodes else []
        media = {n: m[index] for n, m in self.media.items()}
        return replace(self, columns=picked, texts=texts, media=media, episodes=episodes)

    def to(self, device: torch.device) -> Rollouts:
        """The same table on a device."""
        columns = {name: _map(value, lambda t: t.to(device)) for name, value in self.columns.items()}
        return replace(self, columns=columns, media={name: m.to(device) for name, m in self.media.items()})

    def sampled(self) -> Rollouts:
        """The rows in which the policy did the task: without reference answers and tool calls made anew beside them."""
        out = self.rows(~self["anchor"]) if "anchor" in self else self
        return out.rows(out["ran"] < 0) if "ran" in out else out

    @staticmethod
    def concat(parts: Sequence[Rollouts]) -> Rollouts:
        """Stack tables of the same columns: groups and parents renumbered, decisions and turns padded to the widest."""
        if len(parts) == 1:
            return parts[0]
        out: dict[str, Value] = {}
        for name in parts[0].columns:
            if name == "groups":
                shift, pieces = 0, []
                for p in parts:
                    pieces.append(p["groups"] + shift)
                    shift += len(p.prompts)
                out[name] = torch.cat(pieces)
            elif name == "parent":
                first = [sum(map(len, parts[:i])) for i in range(len(parts))]
                out[name] = torch.cat([p["parent"] + start for p, start in zip(parts, first, strict=True)])
            elif isinstance(parts[0].columns[name], dict):
                keys = parts[0].columns[name].keys()  # type: ignore[union-attr]
                out[name] = {k: torch.cat([p.columns[name][k] for p in parts]) for k in keys}  # type: ignore[index]
            else:
                width = max(p[name].shape[-1] for p in parts)
                out[name] = torch.cat([_widen(name, p[name], width) for p in parts])
        return Rollouts(
            [q for p in parts for q in p.prompts], out, parts[0].sampling, [t for p in parts for t in p.texts],
            {name: torch.cat([p.media[name] for p in parts]) for name in parts[0].media},
            [e for p in parts for e in p.episodes],
        )  # fmt: skip


def _has_t(name: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and any(s == "B T" for s in vocabulary.COLUMNS[name].shapes)


def _widen(name: str, tensor: Tensor, width: int) -> Tensor:
    if tensor.dim() == 1 or tensor.shape[1] == width:
        return tensor
    return torch.nn.functional.pad(
        tensor, (0, width - tensor.shape[1]), value=-1 if name in ("turn", "state_key") else 0
    )


def _follow(parent: Tensor, index: Tensor, count: int) -> Tensor:
    """Parents as rows of the new table; a rollout whose parent is not there any more is its own."""
    here = torch.arange(len(index), device=parent.device)
    place = torch.full((count,), -1, device=parent.device).scatter(0, index, here)[parent]
    return torch.where(place >= 0, place, here)


def _map(value: Value, fn: Any) -> Value:
    return {k: fn(v) for k, v in value.items()} if isinstance(value, dict) else fn(value)
