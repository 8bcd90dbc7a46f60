"""Attention of groups that share a prompt: prompt queries see the prompt, completion queries the prompt and their own.

The prompt's keys and values are read where they are, by one matrix product for all completions of a group; nothing is
copied per rollout. Where completions fork, the segments after the fork are to the path before it as completions are to
a prompt, but for the path's queries, which are not computed again; its keys and values are copied once a fork.
Forward and backward are written out, in blocks, as flash attention does (arXiv:2205.14135): only the output and one
number a query and head are kept, and the scores of a block are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coterie.native import attention as native
from coterie.native import in_lines
from coterie.policies.attention import Rule


@dataclass(frozen=True)
class Bundle:
    """n groups computed at once, in slots of their own: prompts [n,P] from slot `start`, then completions [n,R,T]."""

    start: int
    groups: int
    prefix: int
    rows: int
    length: int
    shortest: int
    """The shortest prompt's tokens; `prefix` is the longest's."""
    sizes: Tensor
    """Tokens of each prompt. [n]"""
    repeated: bool = False
    """The prompts' tokens stand in other bundles too: here they are keys and values only."""

    @property
    def middle(self) -> int:
        return self.start + self.groups * self.prefix

    @property
    def end(self) -> int:
        return self.middle + self.groups * self.rows * self.length


@dataclass(frozen=True)
class Layout:
    """Where the L tokens of a packed row lie in the S padded slots of attention.

    `token` [S] is the token in each slot (any, in padding), `slot` [L] the slot of each token and its query, and `real`
    [S] says which slots those are; None: all. `again` lists the slots that hold a token once more, for its key and
    value. All are None when slots and tokens are the same thing, as they are when nothing forks and lengths in a bundle
    are equal.
    """

    bundles: tuple[Bundle, ...]
    token: Tensor | None = None
    slot: Tensor | None = None
    real: Tensor | None = None
    again: Tensor | None = None

    def spread(self, x: Tensor, *, zero: bool = False) -> Tensor:
        """[L,...] -> [S,...]; what is not real is anything finite, or 0 if asked."""
        if self.token is None:
            return x
        x = x.index_select(0, self.token)
        if not zero or self.real is None:
            return x
        return x.masked_fill_(~self.real.view(-1, *[1] * (x.dim() - 1)), 0)

    def ordered(self, order: Tensor, place: Tensor) -> Layout:
        """For the same tokens in another order: the i-th is the order[i]-th of these; `place` is the inverse. [L]"""
        if self.token is None or self.slot is None:
            return replace(self, token=place, slot=order)
        return replace(self, token=place[self.token], slot=self.slot[order])

    def gather(self, x: Tensor) -> Tensor:
        """[S,...] -> [L,...]"""
        return x if self.slot is None else x.index_select(0, self.slot)

    def collect(self, x: Tensor) -> Tensor:
        """[S,...] -> [L,...], summed over the slots of a token: the adjoint of `spread`."""
        own = self.gather(x)
        if self.again is None or self.token is None:
            return own
        total = own.to(_wide(own))
        total.index_add_(0, self.token[self.again], x.index_select(0, self.again).to(total.dtype))
        return total.to(x.dtype)


def block_elements(device: torch.device) -> int:
    """Scores held at once: few enough for a CPU's caches, many enough to fill an accelerator."""
    return 2**20 if device.type == "cpu" else 2**27


class Attended(NamedTuple):
    """What attention found: `out` [L,H,E], and the logarithm of the sum of exponentials of a query's scores [L,H]."""

    out: Tensor
    log_sum: Tensor


def two_part_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: Rule, known: Attended | None = None
) -> Tensor:
    """q [L,H,D], k [L,K,D], v [L,K,E] of a packed row (K divides H) -> [L,H,E]. Differentiable once. What is `known`
    already is not computed again.
    """
    return _TwoPart.apply(q, k, v, layout, rule, known)


def attend_once(q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: Rule) -> Attended:
    """As `two_part_attention`, without gradient."""
    if native.suits(q, k, v, layout, rule):
        q, k, v = map(in_lines, (q, k, v))
        return Attended(*native.attend(q, k, v, layout, rule))
    q, k, v = _in_slots(q, k, v, layout, rule)
    out, log_sum = _attend(q, k, v, layout, rule)
    return Attended(layout.gather(out), layout.gather(log_sum).squeeze(-1))


class _Views:
    """A slot tensor [S,H,D] of one bundle by head of the keys (K) and query head within it (r), without copies."""

    def __init__(self, x: Tensor, bundle: Bundle, heads: int) -> None:
        n, inner = bundle.groups, (heads, x.shape[1] // heads, x.shape[2])
        prefix, rows = x[bundle.start : bundle.middle], x[bundle.middle : bundle.end]
        self.prefix = prefix.view(n, bundle.prefix, *inner).permute(0, 2, 1, 3, 4)
        """[n,K,P,r,D]"""
        self.rows = rows.view(n, bundle.rows, bundle.length, *inner).permute(0, 3, 1, 2, 4, 5)
        """[n,K,R,T,r,D]"""


class _Block(NamedTuple):
    """Queries computed at once: positions of the prompts, or rows; and the prompt positions they may see."""

    own: bool
    queries: slice
    keys: slice

    def of(self, x: _Views) -> Tensor:
        """The queries' entries, as [n,K,R,T,r,D]; a prompt counts as one row."""
        return x.rows[:, :, self.queries] if self.own else x.prefix[:, :, self.queries].unsqueeze(2)


def _blocks(bundle: Bundle, rule: Rule, heads: int, limit: int) -> Iterator[_Block]:
    reach = rule.window or bundle.prefix + bundle.length
    size = max(64, limit // (bundle.groups * heads * bundle.prefix))
    for a in range(0, 0 if bundle.repeated else bundle.prefix, size):
        b = min(a + size, bundle.prefix)
        yield _Block(False, slice(a, b), slice(max(0, a - reach + 1), b))
    if bundle.length:
        first = min(max(0, bundle.shortest - reach + 1), bundle.prefix - 1)
        size = max(1, limit // (bundle.groups * heads * bundle.length * (bundle.prefix + bundle.length - first)))
        for a in range(0, bundle.rows, size):
            yield _Block(True, slice(a, min(a + size, bundle.rows)), slice(first, bundle.prefix))


def _hidden(bundle: Bundle, block: _Block, rule: Rule, repeat: int) -> tuple[Tensor | None, Tensor | None]:
    """What queries may not see among the prompt's keys and among their own: bool, for the last keys they cover."""
    device, reach = bundle.sizes.device, rule.window
    if not block.own:
        a, b = block.queries.start, block.queries.stop
        position = torch.arange(a * repeat, b * repeat, device=device).unsqueeze(1) // repeat
        key = torch.arange(block.keys.start if reach else a, b, device=device)
        return _unseen(position, key, reach), None
    time = torch.arange(bundle.length * repeat, device=device).unsqueeze(1) // repeat
    own = _unseen(time, torch.arange(bundle.length, device=device), reach)
    key = torch.arange(block.keys.start, block.keys.stop, device=device)
    size = bundle.sizes.view(-1, 1, 1, 1, 1)
    if reach is not None and reach < bundle.prefix + bundle.length:
        return (size + time - key >= reach) | (key >= size), own
    return (key >= size) if bundle.shortest < bundle.prefix else None, own


def _unseen(query: Tensor, key: Tensor, reach: int | None) -> Tensor:
    later = key > query
    return later if reach is None else later | (query - key >= reach)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """a [n,K,R,M,X] times b [n,K,X,Y], which all R share, or b [n,K,R,X,Y]."""
    return a @ b if b.dim() == 5 else (a.flatten(2, 3) @ b).unflatten(2, a.shape[2:4])


def _sum_times(a: Tensor, b: Tensor, shared: bool) -> Tensor:
    """a [n,K,R,M,X] transposed times b [n,K,R,M,Y], over the R rows too where they share it."""
    return a.flatten(2, 3).mT @ b.flatten(2, 3) if shared else a.mT @ b


def _scores(q: Tensor, k: Tensor, rule: Rule, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores of scaled queries, in float32 (float64 stays), and the derivative of the soft cap where there is one."""
    scores = _times(q, k.mT)
    scores = scores.to(_wide(scores))
    slope = None
    if rule.softcap is not None:
        scores = scores.div_(rule.softcap).tanh_()
        slope = 1 - scores.square()
        scores = scores.mul_(rule.softcap)
    if hidden is not None:
        scores[..., scores.shape[-1] - hidden.shape[-1] :].masked_fill_(hidden, float("-inf"))
    return scores, slope


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _in_slots(q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: Rule) -> Iterator[Tensor]:
    # Queries are scaled once here, not the many more scores of every block; the backward pass likewise.
    return (layout.spread(x) for x in ((q * rule.scaling).contiguous(), k.contiguous(), v.contiguous()))


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: Rule) -> tuple[Tensor, Tensor]:
    """What attention found for scaled queries in their slots, [S,H,E], and log-sums [S,H,1]."""
    out, log_sum = q.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(*q.shape[:2], 1, dtype=_wide(q))
    heads, limit = k.shape[1], block_elements(q.device)
    for bundle in layout.bundles:
        qs, ks, vs, outs, sums = (_Views(x, bundle, heads) for x in (q, k, v, out, log_sum))
        keys, values = ks.prefix.squeeze(3).contiguous(), vs.prefix.squeeze(3).contiguous()
        for block in _blocks(bundle, rule, q.shape[1], limit):
            queries = block.of(qs).flatten(3, 4)
            parts = [(keys[:, :, block.keys], values[:, :, block.keys])]
            if block.own:
                parts.append((block.of(ks).squeeze(4), block.of(vs).squeeze(4)))
            hidden = _hidden(bundle, block, rule, q.shape[1] // heads)
            scores = [_scores(queries, key, rule, h)[0] for (key, _), h in zip(parts, hidden, strict=False)]
            top = scores[0].amax(-1, keepdim=True)
            if block.own:
                top = torch.maximum(top, scores[1].amax(-1, keepdim=True))
            weights = [s.sub_(top).exp_() for s in scores]
            total = sum(w.sum(-1, keepdim=True) for w in weights)
            found = sum(_times(w.to(q.dtype), value) for w, (_, value) in zip(weights, parts, strict=True))
            assert isinstance(total, Tensor) and isinstance(found, Tensor)
            for target, x in ((block.of(outs), found / total), (block.of(sums), top + total.log())):
                target.copy_(x.unflatten(3, target.shape[3:5]))
    return out, log_sum


class _TwoPart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: Rule, known: Attended | None
    ) -> Tensor:
        ctx.layout, ctx.rule, ctx.native = layout, rule, native.suits(q, k, v, layout, rule)
        if ctx.native:
            q, k, v = map(in_lines, (q, k, v))
            out, log_sum = native.attend(q, k, v, layout, rule) if known is None else known
            ctx.save_for_backward(q, k, v, out, log_sum)
            return out
        q, k, v = _in_slots(q, k, v, layout, rule)
        if known is None:
            in_slots, log_sum = _attend(q, k, v, layout, rule)
            out = layout.gather(in_slots)
        else:
            out, log_sum = known.out, layout.spread(known.log_sum.unsqueeze(-1))
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sum = ctx.saved_tensors
        layout, rule = ctx.layout, ctx.rule
        if ctx.native:
            return *native.attend_backward(q, k, v, out, log_sum, grad, layout, rule), None, None, None
        mean = layout.spread((grad.to(_wide(grad)) * out).sum(-1, keepdim=True), zero=True)
        grad = layout.spread(grad.contiguous(), zero=True)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        heads, limit = k.shape[1], block_elements(q.device)
        for bundle in layout.bundles:
            qs, ks, vs, grads, means, sums = (_Views(x, bundle, heads) for x in (q, k, v, grad, mean, log_sum))
            dqs, dks, dvs = (_Views(x, bundle, heads) for x in (dq, dk, dv))
            keys, values = ks.prefix.squeeze(3).contiguous(), vs.prefix.squeeze(3).contiguous()
            dkeys, dvalues = keys.new_zeros(keys.shape, dtype=_wide(q)), values.new_zeros(values.shape, dtype=_wide(q))
            for block in _blocks(bundle, rule, q.shape[1], limit):
                queries, gradient = block.of(qs).flatten(3, 4), block.of(grads).flatten(3, 4)
                average, total = block.of(means).flatten(3, 4), block.of(sums).flatten(3, 4)
                parts = [(keys[:, :, block.keys], values[:, :, block.keys])]
                if block.own:
                    parts.append((block.of(ks).squeeze(4), block.of(vs).squeeze(4)))
                hidden = _hidden(bundle, block, rule, q.shape[1] // heads)
                dqueries = []
                for number, (key, value) in enumerate(parts):
                    scores, slope = _scores(queries, key, rule, hidden[number])
                    weights = scores.sub_(total).exp_()
                    dvalue = _sum_times(weights.to(q.dtype), gradient, number == 0)
                    slopes = _times(gradient, value.mT).sub_(average).mul_(weights)
                    slopes = (slopes if slope is None else slopes.mul_(slope)).to(q.dtype)
                    dqueries.append(_times(slopes, key))
                    dkey = _sum_times(slopes, queries, number == 0)
                    if number == 0:
                        dkeys[:, :, block.keys] += dkey
                        dvalues[:, :, block.keys] += dvalue
                    else:
                        block.of(dks).copy_(dkey.unsqueeze(4))
                        block.of(dvs).copy_(dvalue.unsqueeze(4))
                target = block.of(dqs)
                whole = dqueries[0] if len(dqueries) == 1 else dqueries[0] + dqueries[1]
                target.copy_(whole.unflatten(3, target.shape[3:5]))
            dks.prefix.copy_(dkeys.unsqueeze(3))
            dvs.prefix.copy_(dvalues.unsqueeze(3))
        return layout.gather(dq).mul_(rule.scaling), layout.collect(dk), layout.collect(dv), None, None, None
