"""Sample rollouts as HTML: the completions of one prompt side by side, each token shaded by how surprising it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from coterie.observe.pictures import URI

GROUPS, SAMPLES, CHARACTERS = 3, 8, 4000
"""Prompts a step, completions a prompt, and characters a completion that are shown."""

Row = Mapping[str, Any]


def rollouts_section(steps: Sequence[tuple[int, Sequence[Row]]]) -> str:
    """The section of the report, "" without recorded rollouts. Steps are (step, rows of the step's Parquet)."""
    shown = [(step, rows) for step, rows in steps if rows]
    if not shown:
        return ""
    parts = [f"<details open><summary>step {step}</summary>{''.join(_groups(rows))}</details>" for step, rows in shown]
    legend = "Completions of one prompt, best reward first."
    if any(row.get("pieces") for _, rows in shown for row in rows):
        legend += " The stronger a token is shaded, the less likely it was when it was sampled."
    return f"<section><h2>Sample rollouts</h2><p class=hint>{legend}</p>{''.join(parts)}</section>"


def _groups(rows: Sequence[Row]) -> list[str]:
    out = []
    grouped = groupby(sorted(rows, key=lambda r: (r["group"], r["sample"])), key=lambda r: r["group"])
    for _, members in [(g, list(m)) for g, m in grouped][:GROUPS]:
        best = sorted(members, key=lambda r: -(r.get("reward") or 0.0))[:SAMPLES]
        left = len(members) - len(best)
        more = f"<p class=hint>and {left} more</p>" if left else ""
        prompt = f"<pre class=prompt>{escape(members[0]['prompt'])}</pre>"
        out.append(f"<div class=group>{prompt}<div class=rollouts>{''.join(map(_card, best))}</div>{more}</div>")
    return out


def _card(row: Row) -> str:
    facts = [f"reward <b>{row['reward']:.3g}</b>"] if row.get("reward") is not None else []
    if row.get("advantage") is not None:
        sign = "up" if row["advantage"] > 0 else "down" if row["advantage"] < 0 else "even"
        facts.append(f"advantage <b class={sign}>{row['advantage']:+.2f}</b>")
    if row.get("length") is not None:
        facts.append(f"length {row['length']}" + (" (cut off)" if row.get("truncated") else ""))
    verdict = {True: " right", False: " wrong"}.get(row.get("correct"), "")  # type: ignore[arg-type]
    return f'<div class="rollout{verdict}"><p>{" · ".join(facts)}</p><div class=text>{_completion(row)}</div></div>'


def _completion(row: Row) -> str:
    pieces, logps = row.get("pieces"), row.get("logp_old")
    if not pieces or not logps or len(pieces) != len(logps):
        text = row.get("completion") or ""
        if text.startswith(URI):
            return f'<img class=sample src="{escape(text)}" alt="sample">'
        return escape(text[:CHARACTERS]) + ("…" if len(text) > CHARACTERS else "") or "<i>(empty)</i>"
    out, used = [], 0
    for piece, logp in zip(pieces, logps, strict=True):
        used += len(piece)
        if used > CHARACTERS:
            out.append("…")
            break
        probability = math.exp(min(logp, 0.0))
        shade = min(max(0.0, -logp) / 5.0, 1.0) * 0.6
        out.append(
            f'<span style="background:rgba(var(--heat),{shade:.2f})" title="probability {probability:.3f}">'
            f"{escape(piece)}</span>"
        )
    return "".join(out)


STYLE = """
details { margin: .8rem 0 } summary { cursor: pointer; font-weight: 600 }
.hint { color: var(--faint); margin: .3rem 0 .6rem }
.group { margin: .8rem 0 1.4rem } .prompt { white-space: pre-wrap; margin-bottom: .6rem; max-height: 16rem }
.rollouts { display: grid; grid-template-columns: repeat(auto-fill, minmax(255px, 1fr)); gap: .6rem }
.rollout { border: 1px solid var(--line); border-left: 4px solid var(--line); border-radius: 6px; padding: .5rem .7rem;
  min-width: 0 }
.rollout.right { border-left-color: var(--good) } .rollout.wrong { border-left-color: var(--bad) }
.rollout p { margin: 0 0 .35rem; font-size: .8rem; color: var(--faint) } .rollout b { color: var(--ink) }
.rollout b.up { color: var(--good) } .rollout b.down { color: var(--bad) }
.text { font: 13px/1.55 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 20rem;
  overflow-y: auto }
.text span { border-radius: 3px }
.sample { width: 96px; image-rendering: pixelated; border-radius: 4px }
"""
