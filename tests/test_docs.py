"""The documentation: every recipe resolves, every command parses and resolves, every link leads somewhere, and the
generated pages cover the registry. Nothing is trained, and nothing is asked of the hub."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml
from typer.testing import CliRunner

from coterie import methods, pieces, registry, wiring
from coterie.build import build_task
from coterie.cli.app import app
from coterie.columns import COLUMNS
from coterie.offline.recorded import load
from coterie.recipe import Recipe, resolve
from coterie.rewards import functions
from coterie.sections import Settings

ROOT = Path(__file__).parents[1]
WRITTEN = sorted(p.name for p in (ROOT / "docs").glob("*.md"))


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()
METHOD_PAGES = [f"methods/{slug}.md" for slug in methods.slugs()]


class Block(NamedTuple):
    language: str
    title: str | None
    text: str


def blocks(text: str) -> list[Block]:
    found = re.findall(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, title or None, body) for language, title, body in found]


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole of docs/ as it is built: what is written by hand, and what is generated."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("methods", "reference", "__pycache__"))
    generator.write(folder)
    return folder


@pytest.fixture
def page(
    request: pytest.FixtureRequest, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Block]]:
    """The blocks of a page, in a folder that holds the files the page (or else the quickstart) tells its reader to
    make, with every command that would train or load a model replaced by one that checks its recipe."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    found = blocks((docs / request.param).read_text(encoding="utf-8"))
    for block in blocks((docs / "quickstart.md").read_text(encoding="utf-8")) + found:
        if block.title is not None:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    registry.all_pieces()  # complete before it is copied
    monkeypatch.setattr(pieces, "REGISTERED", dict(pieces.REGISTERED))
    monkeypatch.chdir(tmp_path)
    result = SimpleNamespace(
        path=tmp_path, metrics=[{"step": 0}], last={"reward/mean": 0.0}, interrupted=False, leads=True
    )

    def start(recipe: Recipe, *args: Any, **kwargs: Any) -> Any:
        check(recipe)
        return result

    def evaluate(target: str, arguments: list[str], task: str | None, as_json: bool) -> None:
        resolve(overrides=arguments, values={"model": target, "task": task or "sort"})

    def validate(name: str, arguments: list[str], limit: int | None, as_json: bool) -> None:
        check(resolve(values={"task": name}, overrides=[f"task.{a}" for a in arguments]))

    monkeypatch.setattr("coterie.api.start", start)
    monkeypatch.setattr("coterie.api.resume", lambda *args, **kwargs: result)
    monkeypatch.setattr("coterie.cli.output.print_result", lambda *args: None)
    monkeypatch.setattr("coterie.cli.plan.show_plan", lambda recipe, as_json: check(recipe))
    monkeypatch.setattr("coterie.cli.commands.evaluate_target", evaluate)

    def compare(names: list[str], recipes: dict[tuple[str, int], Recipe], *args: object) -> bool:
        for recipe in recipes.values():
            check(recipe)
        return True

    monkeypatch.setattr("coterie.cli.commands.compare_methods", compare)
    monkeypatch.setattr("coterie.cli.commands.export_policy", lambda run, folder: None)
    monkeypatch.setattr("coterie.cli.inspect.validate_task", validate)
    monkeypatch.setattr("coterie.cli.demo.run_demo", lambda *args: None)
    monkeypatch.setattr("coterie.cli.doctor.examine", lambda *args: None)
    yield found


def provided(recipe: Recipe) -> frozenset[str]:
    """The columns that come of the task's world, of those with one that pages name."""
    task = recipe.single.get("task")
    worlds = ("frozen-lake", "dilemma", "delegation", "draw-and-read", "redraw")
    return build_task(recipe).provides if task is not None and task.piece.slug in worlds else frozenset()


def check(recipe: Recipe) -> None:
    """What can be known of a recipe without a model: its columns, its reward functions, its local data."""
    data = recipe.settings.offline.rollouts
    if data is not None:
        if all(Path(p).exists() for p in data):
            recorded = load(recipe.settings)
            wiring.check_offline(recipe, recorded.columns, recorded.group_size)
        else:  # a run that the reader makes
            assert all("runs" in Path(p).parts for p in data)
        return
    wiring.check(recipe, provides=provided(recipe))
    judges = [] if recipe.judge is None else [recipe.judge]
    written = [f["fn"] if isinstance(f, dict) else f for f in [*recipe.functions, *judges]]
    for function in written:
        if not isinstance(function, str) or ":" in function:
            functions.resolve(function)
        else:
            registry.get("verifier", function)
    task = recipe.single["task"]
    if task.piece.slug == "jsonl":
        assert len(build_task(recipe).train)


def commands(found: list[Block]) -> list[str]:
    lines = [line for b in found if b.language in ("sh", "") for line in b.text.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("coterie ")]


@pytest.mark.parametrize("page", [*WRITTEN, *METHOD_PAGES], indirect=True)
def test_commands_and_recipes_of_a_page_work(page: list[Block]) -> None:
    for number, block in enumerate(b for b in page if b.language == "yaml"):
        tree = yaml.safe_load(block.text)
        path = Path(block.title or f"block-{number}.yaml")
        path.write_text(block.text, encoding="utf-8")
        if "recipe" in tree:
            assert methods.load(str(path)).title
        else:
            recipe = resolve(file=path, values={} if "task" in tree else {"task": "sort"})
            world = frozenset(
                {"turn", "step_rewards", "state_key", "other_rewards", "episode"}
            )  # a task that the recipe does not name may have one
            wiring.check(recipe, provides=provided(recipe) if "task" in tree else world)
    for line in commands(page):
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"
    for block in page:
        if block.language == "python":
            code = compile(block.text, block.title or "block", "exec")
            if block.title is None:  # a file is loaded by the commands that name it
                exec(code, {"__name__": "coterie_docs_block"})


@pytest.mark.parametrize("page", ["quickstart.md"], indirect=True)
@pytest.mark.parametrize(
    "line",
    [
        "coterie plan --task sort --method dapo+gspo",
        "coterie plan --task sort rollout.groupsize=4",
        "coterie train --task sort --reward my_rewards.py:rite",
        "coterie tran --task sort",
    ],
)
def test_the_check_of_commands_can_fail(page: list[Block], line: str) -> None:
    assert CliRunner().invoke(app, shlex.split(line)[1:]).exit_code != 0


def test_there_is_something_to_check(docs: Path) -> None:
    found = [b for name in WRITTEN for b in blocks((docs / name).read_text(encoding="utf-8"))]
    assert len(commands(found)) > 30
    assert len([b for b in found if b.language == "yaml"]) >= 4


def anchors(text: str) -> set[str]:
    """Identifiers of headings, as the toc extension of Markdown makes them."""
    out = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.M):
        given = re.search(r"\{#([^}]+)\}", heading)
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        out.add(given[1] if given else re.sub(r"[-\s]+", "-", plain))
    return out


def test_every_relative_link_leads_somewhere(docs: Path) -> None:
    links = 0
    for path in docs.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            found = (path.parent / file).resolve() if file else path
            assert found.is_file(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), f"{path.name}: {target}"
            links += 1
    assert links > 100


def test_every_page_is_in_the_navigation_and_back() -> None:
    class Loader(yaml.SafeLoader):
        """mkdocs.yml names Python objects in tags of its own."""

    Loader.add_multi_constructor("tag:", lambda loader, suffix, node: None)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    named = re.findall(r"[\w/-]+\.md", json.dumps(site["nav"]))
    assert sorted(named) == sorted([*WRITTEN, *(n for n in generator.pages() if n not in METHOD_PAGES)])


@pytest.mark.parametrize("slug", methods.slugs())
def test_a_method_page_has_the_five_headings(docs: Path, slug: str) -> None:
    text = (docs / "methods" / f"{slug}.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.+)$", text, re.MULTILINE)) == generator.HEADINGS
    method = methods.load(slug)
    assert method.formula in text
    assert all(f"`{symbol}`" in text for symbol in method.symbols)
    assert all(f"`{metric}`" in text for metric in method.metrics)
    assert f"[{slug}]({slug}.md)" in (docs / "methods" / "index.md").read_text(encoding="utf-8")


def test_the_reference_covers_every_piece_column_and_setting(docs: Path) -> None:
    text = {p.stem: p.read_text(encoding="utf-8") for p in (docs / "reference").glob("*.md")}
    for kind in pieces.KINDS:
        for piece in generator.own(kind):
            name = {"task": "tasks", "verifier": "verifiers"}.get(kind, "pieces")
            start = f"\n## {piece.slug}\n" if name != "pieces" else f"{{#{kind}-{piece.slug}}}\n"
            assert text[name].count(start) == 1, f"{kind} {piece.slug}"
            section = text[name].partition(start)[2].partition("\n## ")[0].partition("\n### ")[0]
            assert all(f"| `{setting}` |" in section for setting in piece.settings), piece.slug
    assert all(f"| `{column}` |" in text["columns"] for column in COLUMNS)
    for section, info in Settings.model_fields.items():
        inner = getattr(info.annotation, "model_fields", {})
        assert all(f"`{section}.{name}`" in text["settings"] for name in inner)
        assert section in text["settings"]


def test_results_are_shown_only_where_they_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "RESULTS", tmp_path)
    assert "no recorded results yet" in generator.method_page(methods.load("grpo"))
    recorded = {"command": "coterie train x.yaml", "rows": [{"seed": 0, "accuracy": 0.9}, {"seed": 1, "accuracy": 0.8}]}
    (tmp_path / "grpo.json").write_text(json.dumps(recorded), encoding="utf-8")
    text = generator.method_page(methods.load("grpo"))
    assert "no recorded results yet" not in text
    assert "| 1 | 0.8 |" in text and "coterie train x.yaml" in text


def test_claims_are_shown_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "CLAIMS", tmp_path)
    assert "no recorded results yet" in generator.claims_page()
    side = {"label": "A", "method": "rloo", "overrides": ["steps=2"], "rate": 4.0}
    figure = {"figure": "accuracy", "ours": 0.5, "baseline": 0.25, "difference": 0.25, "interval": [0.125, 0.375]}
    recorded = {
        "slug": "x", "claim": "It learns.", "how": "A bandit.", "note": "", "paper": None, "ours": side,
        "baseline": {**side, "label": "B", "rate": None}, "seeds": 5, "rates": [1, 4], "verdict": "shows",
        "figures": [figure], "command": "python -m bench.claims x --seeds 5",
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(recorded), encoding="utf-8")
    text = generator.claims_page()
    assert "| [x](#x) | It learns. | accuracy | 0.500 | 0.250 | +0.250 (+0.125 to +0.375) | 5 | **shows** |" in text
    assert "--method rloo steps=2" in text and "best of 2" in text and "bench.claims x --seeds 5" in text
