"""Write the pages that are read off the registry: docs/methods/ and docs/reference/. `make docs` runs it.

Results of a method come from bench/results/methods/SLUG.json, where there is one: {"command": the command that made
them, "rows": [{column: value}, …]}. Without it the page says that there are none.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from coterie import methods, registry
from coterie.columns import COLUMNS
from coterie.layers import leaves
from coterie.methods import Method
from coterie.pieces import TABLE_KINDS, Piece
from coterie.policies.causal_lm import CausalLM
from coterie.recipe import CHAIN, SINGLE, pieces_of
from coterie.sections import DEFAULTS, LEAVES, Settings

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "bench" / "results" / "methods"
BENCHES = DOCS.parent / "bench" / "results"
CLAIMS = DOCS.parent / "bench" / "results" / "claims"
STABILITY = DOCS.parent / "bench" / "results" / "stability" / "cells.json"
HEADINGS = ("Usage", "Formula and symbols", "Metrics it logs", "Differences from the paper", "Results")
"""The same five on every method's page, in this order."""
COUNTDOWN = "--task countdown model='{init: {layers: 2}}'"
DIGITS = "--task digits model='{flow: {layers: 3}}'"
FROZEN_LAKE = "--task frozen-lake model='{init: {layers: 2}}'"
DILEMMA = "--task dilemma model='{init: {layers: 2}}'"
"""What the command of a method's page trains, where decisions are tokens, denoising steps, and actions in a world, of
one agent or of several."""
SIDES = {
    "mutual_reward": "--task draw-and-read model='{init: {layers: 2}}'",
    "take_turns": "--task redraw model='{init: {layers: 2}}' policies='{describe: {}, draw: {}}'",
}
"""The same, where one side generates and the other understands, by the piece that makes the difference."""

KINDS = {
    "curriculum": "Draw: which prompts come next",
    "strategy": "Roll out: how completions are made",
    "sampler": "Roll out: the rule of a denoising step",
    "scheme": "Score: who meets whom under a pairwise judge",
    "shaping": "Score: what is done to the reward",
    "filter": "Select: which groups stay",
    "baseline": "Credit: baselines",
    "modifier": "Credit: modifiers",
    "selection": "Select: gradient weights",
    "ratio": "Update: ratios",
    "trust_region": "Update: trust regions",
    "loss": "Update: whole losses",
    "term": "Update: terms",
    "aggregation": "Update: aggregations",
    "imitation": "Update: imitation of demonstrations",
    "optimizer": "Update: optimizers",
}
"""Kinds on the page of pieces, in the order of the loop. Tasks and verifiers have pages of their own."""
SLOTS = {kind: slot for slot, kind in {**SINGLE, **CHAIN}.items()}


def pages() -> dict[str, str]:
    """Path below docs/ -> text, for every generated page."""
    out = {"methods/index.md": method_index()}
    out |= {f"methods/{m.slug}.md": method_page(m) for m in methods.all_methods()}
    out |= {
        "reference/pieces.md": pieces_page(),
        "reference/columns.md": columns_page(),
        "reference/settings.md": settings_page(),
        "reference/tasks.md": tasks_page(),
        "reference/verifiers.md": verifiers_page(),
        "reference/claims.md": claims_page(),
        "reference/stability.md": stability_page(),
        "reference/benchmarks.md": benchmarks_page(),
    }
    return out


def write(folder: Path = DOCS) -> list[Path]:
    """Write every page below `folder`, removing pages of methods that are gone."""
    for name in ("methods", "reference"):
        shutil.rmtree(folder / name, ignore_errors=True)
    written = []
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip() + "\n", encoding="utf-8")
        written.append(path)
    return written


def own(kind: str) -> list[Piece]:
    """Coterie's pieces of a kind: plug-ins and users' files are not ours to document."""
    return [p for p in registry.all_pieces(kind) if p.module.startswith("coterie.")]


def is_whole(method: Method) -> bool:
    """Whether a method stands alone; one that gives no credit is joined to another."""
    return "baseline" in method.layer.tree.get("credit", {})


def method_index() -> str:
    def rows(whole: bool) -> list[list[str]]:
        return [
            [f"[{m.slug}]({m.slug}.md)", escape(m.title), paper(m.paper)]
            for m in methods.all_methods()
            if is_whole(m) == whole
        ]

    head = ("method", "what it is", "paper")
    return "\n\n".join([
        "# Methods",
        "A method is a named composition of [pieces](../reference/pieces.md). Join methods with `+`; "
        "[Concepts](../concepts.md#methods) says how they merge. `coterie methods show SLUG` prints these pages.",
        "## Methods that stand alone", table(head, rows(True)),
        "## Methods to join to another", table(head, rows(False)),
    ])  # fmt: skip


def method_page(method: Method) -> str:
    name = method.slug if is_whole(method) else f"grpo+{method.slug}"
    composition = [
        [f"`{'.'.join(path)}`", ", ".join(described(".".join(path), value))]
        for path, value in leaves(method.layer.tree, LEAVES)
    ]
    symbols = "\n".join(f"- `{k}`: {escape(v)}" for k, v in method.symbols.items())
    logged = "\n".join(f"- `{k}`: {escape(v)}" for k, v in method.metrics.items()) or "It records none of its own."
    usage, formula, metrics, differences, results = HEADINGS
    return "\n\n".join([
        f"# {escape(method.title)}",
        f"`{method.slug}`" + (f" · {paper(method.paper)}" if method.paper else ""),
        escape(method.summary),
        f"## {usage}",
        f"When to use it: {escape(method.when)}" if method.when else "",
        fence("sh", f"coterie train {trained(method)} --method {name}{asked(method)}"),
        "What it sets:", table(("setting", "value"), composition),
        "As it is written, in a recipe of your own:", fence("yaml", to_yaml(method.layer.tree)),
        f"## {formula}", fence("text", method.formula), symbols,
        f"## {metrics}", logged, "Metrics of every run: [reading the curves](../quickstart.md#reading-the-curves).",
        f"## {differences}", sentence(escape(method.differences or "none known.")),
        f"## {results}", results_of(method.slug, name),
    ])  # fmt: skip


def trained(method: Method) -> str:
    """The task and model of a command with the method."""
    if denoises(method):
        return DIGITS
    for _, bound in pieces_of(method.layer):
        if bound.piece.slug in SIDES:
            return SIDES[bound.piece.slug]
    read = {column for _, bound in pieces_of(method.layer) for column in bound.piece.required}
    acts = "world" in read or ("state_key" in read and "strategy" not in method.layer.tree.get("rollout", {}))
    return DILEMMA if read & {"other_rewards", "episode"} else FROZEN_LAKE if acts else COUNTDOWN


def denoises(method: Method) -> bool:
    """Whether a method is one of policies that denoise: it says how, or reads what only they have."""
    columns = {c for _, b in pieces_of(method.layer) for c in b.piece.required}
    return "sampler" in method.layer.tree.get("rollout", {}) or bool(columns & CausalLM.lacks.keys())


def asked(method: Method) -> str:
    """What a command with the method must say besides: the teacher, where a piece reads its log-probs."""
    read = {column for _, bound in pieces_of(method.layer) for column in bound.piece.required}
    return " teacher.model=TEACHER" if any(COLUMNS[c].provider == "teacher" for c in read if c in COLUMNS) else ""


def results_of(slug: str, name: str) -> str:
    file = RESULTS / f"{slug}.json"
    if not file.is_file():
        method = methods.load(slug)
        recipe = f"src/coterie/recipes/{'flow' if denoises(method) else 'demo'}.yaml"
        what = trained(method) if trained(method) in (FROZEN_LAKE, DILEMMA, *SIDES.values()) else recipe
        command = fence("sh", f"coterie train {what} --method {name}{asked(method)}")
        return (
            f"There are no recorded results yet. From a clone, this trains the method on the demo's task:\n\n{command}"
        )
    recorded = json.loads(file.read_text(encoding="utf-8"))
    head = list(recorded["rows"][0])
    rows = [[escape(str(row[column])) for column in head] for row in recorded["rows"]]
    return f"{table(head, rows)}\n\nMade by:\n\n{fence('sh', recorded['command'])}"


def described(slot: str, value: Any) -> list[str]:
    """A composition's value with links to its pieces."""
    kind = {**SINGLE, **CHAIN}.get(slot)
    items = value if isinstance(value, list) else [value]
    if kind is None:
        return [f"`{value}`"]
    out = []
    for item in items:
        slug, settings = (item, {}) if isinstance(item, str) else next(iter(item.items()))
        said = " ".join(f"`{k}={v}`" for k, v in (settings or {}).items())
        out.append(f"[{slug}](../reference/pieces.md#{kind}-{slug})" + (f" {said}" if said else ""))
    return out


def pieces_page() -> str:
    parts = [
        "# Pieces",
        "Positional parameters are [columns](columns.md), keyword-only parameters are settings. Any numeric setting "
        "of a piece takes a [schedule](../concepts.md#schedules). Tasks and verifiers are pieces too: "
        "[tasks](tasks.md), [verifiers](verifiers.md).",
    ]
    for kind, title in KINDS.items():
        parts += [f"## {title}", f"Slot: `{SLOTS[kind]}`"]
        for piece in own(kind):
            named = [*piece.required, *(f"{c} (if there)" for c in piece.optional)] if kind in TABLE_KINDS else []
            parts += [f"### `{piece.slug}` {{#{kind}-{piece.slug}}}", *body(piece)]
            parts += ["Reads the [columns](columns.md) " + ", ".join(named) + "."] if named else []
    return "\n\n".join(parts)


def body(piece: Piece) -> list[str]:
    """Docstring, paper and settings of a piece."""
    paragraphs = [escape(" ".join(p.split())) for p in piece.doc.split("\n\n")]
    rows = [
        [f"`{s.name}`", code(s.type_text), "required" if s.required else code(s.default)]
        for s in piece.settings.values()
    ]
    out = [*paragraphs, *([paper(piece.paper)] if piece.paper else [])]
    return out + ([table(("setting", "type", "default"), rows)] if rows else ["It has no settings."])


def columns_page() -> str:
    rows = []
    for column in COLUMNS.values():
        readers = [
            f"[{p.slug}](pieces.md#{p.kind}-{p.slug})"
            for kind in KINDS if kind in TABLE_KINDS for p in own(kind) if column.name in (*p.required, *p.optional)
        ]  # fmt: skip
        shape = {"{B}": "{name: [B]}", "scalar": "scalar"}.get(column.shapes[0], column.shape_text)
        rows.append([
            f"`{column.name}`", code(shape), column.dtype, column.provider, escape(column.meaning), ", ".join(readers),
        ])  # fmt: skip
    return "\n\n".join([
        "# Columns",
        "The vocabulary of the rollouts table. B is rollouts, T decisions, U turns. A piece reads a column by naming "
        "it as a positional parameter; what costs a forward pass is computed only if a piece of the recipe names it. "
        "Nothing in this version provides "
        "the columns made by an environment: a piece that reads one is refused when the recipe is read.",
        table(("column", "shape", "type", "made by", "meaning", "read by"), rows),
    ])  # fmt: skip


def settings_page() -> str:
    from coterie.policies.loading import LoraSpec, ModelSpec, SourceSpec
    from coterie.policies.masked_diffusion.spec import MaskedDiffusionSpec
    from coterie.policies.masked_diffusion.tiny import TinyMaskedSpec
    from coterie.policies.tiny import TinySpec
    from coterie.schedules import Schedule

    sections = {n: f.annotation for n, f in Settings.model_fields.items() if is_section(f.annotation)}
    plain = {n: f for n, f in Settings.model_fields.items() if n not in sections}
    slots = [
        [f"`{slot}`", "required" if slot == "task" else code(default_of(slot)), f"one {kind.replace('_', ' ')}"]
        for slot, kind in SINGLE.items()
    ] + [[f"`{slot}`", "none", f"a list, {kind} pieces; methods append to it"] for slot, kind in CHAIN.items()]
    parts = [
        "# Settings",
        "Everything of a recipe that is not a piece, then the slots that pieces go into. Unknown keys are errors.",
        "## Top level", field_table(plain),
    ]  # fmt: skip
    for name, model in sections.items():
        parts += [f"## {name}", field_table(model.model_fields, f"{name}.")]
    parts += [
        "## model", "`model` is a path, a hub id, or a mapping of these.",
        field_table(ModelSpec.model_fields, "model.", attribute_docs(ModelSpec)),
        "### model.lora", docstring(LoraSpec),
        field_table(LoraSpec.model_fields, "model.lora.", attribute_docs(LoraSpec)),
        "### model.init", docstring(TinySpec) + " A task that has a vocabulary of its own gives it.",
        field_table(TinySpec.model_fields, "model.init.", attribute_docs(TinySpec)),
        "### model, of kind masked_diffusion", docstring(MaskedDiffusionSpec) + " Beside the settings above, but for "
        "those of causal models alone:", field_table(
            {
                n: f for n, f in MaskedDiffusionSpec.model_fields.items()
                if n == "init" or n not in SourceSpec.model_fields
            },
            "model.", attribute_docs(MaskedDiffusionSpec)),
        "### model.init, of kind masked_diffusion", docstring(TinyMaskedSpec),
        field_table(TinyMaskedSpec.model_fields, "model.init.", attribute_docs(TinyMaskedSpec)),
        "## Slots for pieces", table(("slot", "default", "takes"), slots),
        "## Schedules", docstring(Schedule), field_table(Schedule.model_fields),
    ]  # fmt: skip
    return "\n\n".join(parts)


def is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def default_of(slot: str) -> str:
    return dict((".".join(path), value) for path, value in leaves(DEFAULTS.tree, frozenset())).get(slot, "none")


def field_table(fields: Mapping[str, Any], prefix: str = "", docs: Mapping[str, str] | None = None) -> str:
    rows = []
    for name, info in fields.items():
        default = info.get_default(call_default_factory=True) if not info.is_required() else PydanticUndefined
        shown = "required" if default is PydanticUndefined else code("none" if default is None else default)
        said = info.description or (docs or {}).get(name, "")
        rows.append([f"`{prefix}{info.alias or name}`", code(type_text(info.annotation)), shown, escape(said)])
    return table(("setting", "type", "default", "meaning"), rows)


def type_text(annotation: Any) -> str:
    if annotation is Any:
        return "path, hub id or mapping"
    text = annotation.__name__ if inspect.isclass(annotation) and "[" not in str(annotation) else str(annotation)
    for name in ("typing.", "pathlib.", "coterie.schedules.", "coterie.policies.loading.", "coterie.policies.tiny."):
        text = text.replace(name, "")
    return text.replace("Annotated[int, Gt(gt=0)]", "int").replace("Optional[int]", "int | None")


def attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings under the fields of a class and of those it comes from."""
    inherited = attribute_docs(model.__base__) if model.__base__ not in (BaseModel, None) else {}
    statements = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0].body  # type: ignore[attr-defined]
    return inherited | {
        field.target.id: " ".join(str(said.value.value).split())
        for field, said in itertools.pairwise(statements)
        if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
        and isinstance(field.target, ast.Name)
    }  # fmt: skip


def tasks_page() -> str:
    parts = [
        "# Tasks",
        "`--task NAME`, or a data file. Settings are `task.SETTING=VALUE`. Held-out problems are disjoint from the "
        "training problems by content. `coterie tasks validate NAME` checks that the verifier accepts every "
        "reference answer and rejects corrupted ones.",
    ]
    for piece in own("task"):
        parts += [f"## {piece.slug}", *body(piece)]
    return "\n\n".join(parts)


def verifiers_page() -> str:
    parts = [
        "# Verifiers",
        "A verifier compares a completion with a reference answer. Name one for your data, `task.verifier=numeric`, "
        "or among the reward functions, `--reward numeric`. Those that may hang run in a process that is killed "
        "after a time limit. [Rewards](../rewards.md) has the rest.",
    ]
    for piece in own("verifier"):
        hang = getattr(piece.fn, "may_hang", False)
        parts += [f"## {piece.slug}", *body(piece), *(["May hang: it runs in a process of its own."] if hang else [])]
    return "\n\n".join(parts)


def benchmarks_page() -> str:
    """The benches' recorded figures, then each bench's table, with machine and command."""
    machines = [BENCHES, *sorted(path.parent for path in BENCHES.glob("*/summary.json"))]
    files = [path for folder in machines for path in sorted(folder.glob("*.json"))]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    found = [bench for bench in found if isinstance(bench, dict)]
    parts = ["# Benchmarks", "Ratios are measured side by side in one run, on one machine; medians of the runs given."]
    if not found:
        return "\n\n".join([*parts, "There are no recorded results yet.", fence("sh", "make bench")])
    figures = [(f, bench["machine"]["cpu"]) for bench in found for f in bench["figures"]]
    rows = [
        [escape(f["name"]), f"{f['ratio']:.3g}", bar(f), str(f["runs"]), escape(cpu), f"`{f['command']}`"]
        for f, cpu in figures
    ]
    parts.append(table(("figure", "measured", "bar", "runs", "processor", "command"), rows))
    for bench in found:
        where = bench["machine"]
        shown = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in bench["table"]]
        parts += [
            f"## {bench['name']}, {escape(where['cpu'])}",
            f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads; "
            + ", ".join(f"{name} {version}" for name, version in bench["versions"].items()) + ".",
            table([escape(str(key)) for key in bench["table"][0]], shown) if shown else "",
            "\n".join(f"- {escape(note)}" for note in bench["notes"]),
            fence("sh", bench["command"]),
        ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def bar(figure: Mapping[str, Any]) -> str:
    if figure["bar"] is None:
        return ""
    met = "met" if figure["met"] else "**not met**"
    return f"{'at most' if figure['at_most'] else 'at least'} {figure['bar']:g}: {met}"


def claims_page() -> str:
    """The experiments of bench/claims: a table of all, then each with its figures and how it was made."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CLAIMS.glob("*.json"))]
    parts = [
        "# Claims in miniature",
        "What papers say of their methods, tried in small controlled experiments: two recipes, the same seeds, one "
        "figure, and the 95 % interval of its paired difference. A claim shows when the interval lies on its side of 0,"
        " and the opposite when it lies on the other. Small worlds settle nothing about large models: they show that "
        "an implementation does what it says, and under which conditions an effect is to be expected.",
        fence("sh", "python -m bench.claims"),
    ]  # fmt: skip
    if not found:
        return "\n\n".join([*parts, "There are no recorded results yet."])
    rows = [
        [f"[{r['slug']}](#{r['slug']})", escape(r["claim"]), r["figures"][0]["figure"], *numbers(r["figures"][0]),
         str(r["seeds"]), f"**{r['verdict']}**"]
        for r in found
    ]  # fmt: skip
    parts += [
        table(("experiment", "claim", "figure", "method", "baseline", "difference", "seeds", "verdict"), rows),
        "![The first figure of every experiment, a line a seed](../img/claims.png)",
        "A line is a seed, a dot the mean with its interval. Green: the claim shows. Yellow: it shows, but what it "
        "says is kept falls. Red: the opposite shows. Grey: neither.",
    ]  # fmt: skip
    for r in found:
        rates = [f"{r[side]['label']} {r[side]['rate']:g}" for side in ("ours", "baseline") if r[side]["rate"]]
        chosen = (
            f" Learning rates, best of {len(r['rates'])} on seeds of their own: {', '.join(rates)}." if rates else ""
        )
        figures = [[f["figure"], *numbers(f)] for f in r["figures"]]
        sides = [
            f"{r[s]['label']}: `--method {' '.join([r[s]['method'], *r[s]['overrides']])}`"
            for s in ("ours", "baseline")
        ]
        parts += [
            f"## {r['slug']}", f"{escape(r['claim'])} {paper(r['paper'])} **{sentence(r['verdict'])}.**",
            escape(r["how"]) + chosen, escape(r["note"]),
            table(("figure", r["ours"]["label"], r["baseline"]["label"], "difference"), figures),
            "\n".join(f"- {side}" for side in sides), fence("sh", r["command"]),
        ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


STABILITY_FIGURES = {
    "accuracy": "Accuracy at the end", "entropy": "Entropy of the policy, nats",
    "kl": "KL from the policy that sampled (k3)", "grad_norm": "Gradient norm before clipping",
}  # fmt: skip


def stability_page() -> str:
    """The cells of bench/stability: who still learns at which lateness, and the figures behind it."""
    parts = [
        "# Stale batches: who survives",
        "Asynchronous training learns from batches that older weights sampled. Here each objective trains the same "
        "tiny language model on sorting four digits, from the same warm-started weights, by the same number of "
        "updates; only the age of the batches differs. All share one learning rate, which suits GRPO on policy: a "
        "method tuned by itself may do better, and small worlds settle nothing about large models. DAPO also draws "
        "again until its batch is full, so it sees more rollouts. TOPR stands twice: with its paper's baseline, which "
        "is c = 1/2 for rewards of 0 and 1, and with one that was chosen on this very task.",
        fence("sh", "python -m bench stability"),
    ]  # fmt: skip
    if not STABILITY.is_file():
        return "\n\n".join([*parts, "There are no recorded results yet."])
    recorded = json.loads(STABILITY.read_text(encoding="utf-8"))
    found = recorded["table"]
    ages = sorted({int(age) for row in found for age in row["late"]})
    parts += [
        "![Accuracy, entropy, KL and gradient norm of every objective by lateness](../img/stability.png)",
        "Means over seeds; the best over late batches come first. In the first panel ▼ marks an accuracy below that of "
        "the first weights, ~ one that cannot be told from it.",
        f"## At {ages[-1]} updates late",
        "Whether the 95 % interval of the gain over the first weights lies above 0:",
    ]
    for verdict in ("learns", "undecided", "falls"):
        named = [r["objective"] for r in found if r["late"].get(str(ages[-1]), {}).get("verdict") == verdict]
        parts.append(f"- {verdict}: {', '.join(named) or 'none'}")
    for figure, title in STABILITY_FIGURES.items():
        rows = [[escape(r["objective"]), *(spread(r["late"].get(str(age)), figure) for age in ages)] for r in found]
        parts += [f"## {title}", table(("objective", *(f"{age} late" for age in ages)), rows)]
    parts += [
        "± is half the 95 % interval over seeds. Entropy, KL and gradient norm are of the last updates; where they are "
        "missing, no rollout had anything left to teach.",
        "## How it was made",
        "\n".join(f"- {escape(r['objective'])}: `--method {r['method']}`" for r in found),
        "Every run: " + ", ".join(f"`{setting}`" for setting in recorded["setting"]) + ". The first weights: "
        + ", ".join(f"`{setting}`" for setting in recorded["first_weights"]) + ".",
    ]  # fmt: skip
    return "\n\n".join(parts)


def spread(point: Mapping[str, Any] | None, figure: str) -> str:
    mean, half = (point or {}).get(figure, (None, None))
    return "" if mean is None else f"{mean:.2f}" + ("" if half is None else f" ± {half:.2f}")


def numbers(figure: Mapping[str, Any]) -> list[str]:
    low, high = figure["interval"]
    return [
        f"{figure['ours']:.3f}",
        f"{figure['baseline']:.3f}",
        f"{figure['difference']:+.3f} ({low:+.3f} to {high:+.3f})",
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


def fence(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def code(value: Any) -> str:
    """A value as code in a table cell; Markdown leaves a | inside code alone."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    text = value if isinstance(value, str) and value else text
    text = text.replace("\n", "\\n").replace("`", "'")
    return f"`{text}`"


def escape(text: str) -> str:
    """Plain text, safe in a paragraph and in a table cell."""
    for sign, safe in (("*", "\\*"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(sign, safe)
    return text


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def docstring(thing: Any) -> str:
    return escape(" ".join((inspect.getdoc(thing) or "").split()))


def paper(identifier: str | None) -> str:
    return f"[{identifier}](https://arxiv.org/abs/{identifier.split(':')[1]})" if identifier else ""


def to_yaml(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(tree), sort_keys=False, default_flow_style=None, width=100)


if __name__ == "__main__":
    sys.stdout.write(f"{len(write())} pages written below {DOCS.name}/\n")
