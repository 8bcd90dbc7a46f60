"""report.html: one file that shows a run to anybody. No external requests, no scripts, light and dark."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from coterie.observe import rollout_store
from coterie.observe.files import replacing
from coterie.observe.metrics import MetricsLog
from coterie.observe.pictures import URI
from coterie.observe.progress import clock_text
from coterie.observe.rollout_page import STYLE as ROLLOUT_STYLE
from coterie.observe.rollout_page import rollouts_section
from coterie.observe.run_dir import RunDir

Rows = Sequence[Mapping[str, Any]]


def write(run_dir: Path) -> Path:
    """Write RUN/report.html from what is on disk: summary, curves, evaluations, sample rollouts, recipe, manifest."""
    run = RunDir.open(run_dir)
    rows = MetricsLog(run.metrics).read()
    recipe = run.recipe.read_text(encoding="utf-8")
    made = run.made_with()
    title = f"{made.get('method', 'run')} on {made.get('task', run.path.name)}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        _summary(run, rows, made),
        _curves(run.curves),
        _samples(run.samples),
        _episodes(run.samples),
        _evaluations(rows),
        rollouts_section([(step, rollout_store.read(path)) for step, path in _recorded(run)]),
        _section("Recipe", f"<pre>{escape(recipe)}</pre>"),
        _section("Made with", _definitions(_flat(made))),
    ]
    page = _PAGE.format(title=escape(title), style=_STYLE + ROLLOUT_STYLE, body="\n".join(filter(None, sections)))
    with replacing(run.report, "the report") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run.report


def headline(rows: Rows) -> str:
    """First and last held-out accuracy with its interval, else the reward; "" without either."""
    for key, label in (("eval/accuracy", "held-out accuracy"), ("reward/mean", "reward")):
        known = [r for r in rows if isinstance(r.get(key), int | float)]
        if not known:
            continue
        first, last = known[0], known[-1]
        if key == "reward/mean":
            return f"{label} {first[key]:.3g} → {last[key]:.3g}"
        band = ""
        if "eval/accuracy_low" in last:
            band = f" (95% interval {100 * last['eval/accuracy_low']:.1f}–{100 * last['eval/accuracy_high']:.1f}%)"
        return f"{label} {100 * first[key]:.1f}% → {100 * last[key]:.1f}%{band}"
    return ""


def _summary(run: RunDir, rows: Rows, made: Mapping[str, Any]) -> str:
    status = run.status()
    seconds = sum(r.get("time/step") or 0.0 for r in rows)
    last = rows[-1] if rows else {}
    model = _model(run.recipe.read_text(encoding="utf-8"))
    facts = {
        "task": made.get("task"),
        "method": made.get("method"),
        "model": model,
        "steps": last.get("step"),
        "seed": made.get("seed"),
        "time": clock_text(seconds) if seconds else None,
        "status": " ".join(filter(None, [status.get("state"), status.get("message")])) or None,
    }
    cards = "".join(
        f"<div class=card><span>{name}</span><b>{escape(str(value))}</b></div>"
        for name, value in facts.items()
        if value is not None
    )
    line = headline(rows)
    return (f"<p class=headline>{escape(line)}</p>" if line else "") + f"<div class=cards>{cards}</div>"


def _model(recipe: str) -> str | None:
    """The model as the recipe names it, on one line."""
    import yaml

    tree = yaml.safe_load(recipe)
    model = tree.get("model") if isinstance(tree, dict) else None
    return model if model is None or isinstance(model, str) else json.dumps(model)


def _curves(path: Path) -> str:
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img class=curves alt="curves of the run" src="data:image/png;base64,{data}">'


def _samples(folder: Path) -> str:
    """What the policy drew before the first step and after the last, where samples are pictures."""
    files = sorted(folder.glob("step-*.png"))
    shown = [
        f"<figure>{_image(file)}<figcaption>step {int(file.stem.removeprefix('step-'))}</figcaption></figure>"
        for file in dict.fromkeys([*files[:1], *files[-1:]])
    ]
    hint = "<p class=hint>The same prompts and the same noise, before and after. Red: not what was asked for.</p>"
    return _section("Samples", f"{hint}<div class=samples>{''.join(shown)}</div>") if shown else ""


def _episodes(folder: Path) -> str:
    """Episodes of the same problems before the first step and after the last, where the task has a world."""
    files = sorted(folder.glob("step-*.json"))
    columns = []
    for file in dict.fromkeys([*files[:1], *files[-1:]]):
        told = "".join(map(_episode, json.loads(file.read_text(encoding="utf-8"))))
        columns.append(f"<div><h3>step {int(file.stem.removeprefix('step-'))}</h3>{told}</div>")
    hint = "<p class=hint>The first held-out problems, with the same seeds, before and after.</p>"
    return _section("Episodes", f"{hint}<div class=episodes>{''.join(columns)}</div>") if columns else ""


def _episode(told: Mapping[str, Any]) -> str:
    lines = [_said(told["prompt"])]
    for turn in told["turns"]:
        reward = f"   reward {turn['reward']:g}" if turn["reward"] else ""
        lines.append(f"<b>{escape(turn['action']) or '(nothing)'}</b>{reward}")
        lines += [] if turn["observation"] is None else [_said(turn["observation"])]
    end, kind = ("solved", "up") if told["success"] else ("not solved", "down")
    if told["failed"]:
        end, kind = f"the environment failed: {escape(told['failed'])}", "down"
    return "<pre>" + "\n".join(lines) + f"\n<b class={kind}>{end}</b></pre>"


def _said(words: Any) -> str:
    """What the world said: text, or messages."""
    if isinstance(words, str):
        return escape(words)
    messages = [words] if isinstance(words, Mapping) else words
    return "\n".join(escape(f"{m.get('role')}: {m.get('content')}") for m in messages)


def _image(file: Path) -> str:
    return f'<img src="{URI}{base64.b64encode(file.read_bytes()).decode("ascii")}" alt="samples of {file.stem}">'


def _evaluations(rows: Rows) -> str:
    known = [r for r in rows if any(k.startswith("eval/") for k in r)]
    if not known:
        return ""
    found = dict.fromkeys(k for r in known for k in r if k.startswith("eval/"))
    names = [n for n in found if not n.endswith(("_low", "_high"))]
    if "eval/length" in found and not any(r.get("eval/length") for r in known):  # samples of an ODE take no decisions
        names = [n for n in names if n not in ("eval/length", "eval/truncated_share")]
    head = "".join(f"<th>{escape(n.removeprefix('eval/').replace('_', ' '))}</th>" for n in ["step", *names])
    body = "".join(
        f"<tr><td>{row['step']}</td>" + "".join(f"<td>{_cell(row, n)}</td>" for n in names) + "</tr>" for row in known
    )
    hint = "<p class=hint>In brackets: the 95% interval over problems.</p>"
    return _section("Held-out evaluations", f"{hint}<div class=wide><table><tr>{head}</tr>{body}</table></div>")


def _cell(row: Mapping[str, Any], name: str) -> str:
    """A value, and its interval where the row has one."""
    numbers = [row.get(name + end) for end in ("", "_low", "_high")]
    value, low, high = (_amount(n, name) if isinstance(n, int | float) else "" for n in numbers)
    return f"{value} <small>({low}–{high})</small>" if value and low and high else value


def _amount(value: float, name: str) -> str:
    return f"{value:.1f}" if name == "eval/length" else f"{100 * value:.1f}%"


def _recorded(run: RunDir) -> list[tuple[int, Path]]:
    """The first, middle and last recorded steps."""
    files = sorted(run.rollouts.glob("step-*.parquet"))
    if not files:
        return []
    places = sorted({0, (len(files) - 1) // 2, len(files) - 1})
    return [(int(files[i].stem.removeprefix("step-")), files[i]) for i in places]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _definitions(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(k.replace('_', ' '))}</th><td>{escape(str(v))}</td></tr>"
        for k, v in values.items()
        if v is not None
    )
    return f"<div class=wide><table class=facts>{rows}</table></div>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""

_STYLE = """
:root { color-scheme: light dark; --bg: #fff; --ink: #1f2328; --faint: #59636e; --line: #d9dee3; --soft: #f6f8fa;
  --accent: #2563eb; --good: #1a7f37; --bad: #cf222e; --heat: 37, 99, 235; }
@media (prefers-color-scheme: dark) { :root { --bg: #0f1318; --ink: #e6edf3; --faint: #9198a1; --line: #30363d;
  --soft: #171c23; --accent: #6ea8fe; --good: #56d364; --bad: #ff7b72; --heat: 110, 168, 254; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { margin: 0; font-size: 1.9rem } h2 { margin: 2.4rem 0 .7rem; font-size: 1.25rem }
.headline { margin: .3rem 0 1.1rem; font-size: 1.15rem; color: var(--accent); font-weight: 600 }
.cards { display: flex; flex-wrap: wrap; gap: .6rem }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .45rem .8rem; background: var(--soft) }
.card span { display: block; font-size: .75rem; color: var(--faint) }
.card b { font-weight: 600; overflow-wrap: anywhere }
.curves { width: 100%; margin-top: 1.4rem; border-radius: 8px; border: 1px solid var(--line); background: #fff }
pre { margin: 0; padding: .9rem 1rem; overflow-x: auto; background: var(--soft); border: 1px solid var(--line);
  border-radius: 8px; font: 13px/1.45 ui-monospace, monospace }
small { color: var(--faint) }
.wide { overflow-x: auto }
.samples { display: flex; flex-wrap: wrap; gap: 1rem } .samples img { max-width: 100%; border-radius: 6px }
.episodes { display: flex; flex-wrap: wrap; gap: 1rem } .episodes > div { flex: 1; min-width: 18rem }
.episodes pre { margin-bottom: .6rem; white-space: pre-wrap }
.episodes .up { color: var(--good) } .episodes .down { color: var(--bad) }
figure { margin: 0 } figcaption { color: var(--faint); font-size: .85rem; text-align: center }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--faint); font-weight: 500 }
.facts th, .facts td { text-align: left; white-space: normal; overflow-wrap: anywhere }
"""
