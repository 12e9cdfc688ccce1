# SPDX-License-Identifier: Apache-2.0
"""The documents say what is there: examples run, commands parse, paths exist, tables agree with the code."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_house
import torch
import yaml
from tiny_checkpoint import build_checkpoint

import pyprune
from pyprune import backends, cli, demo, models, solvers
from pyprune.commands import demo as demo_command
from pyprune.commands.summary import prune_text
from pyprune.demo import story
from pyprune.methods.request import RECIPES

ROOT = Path(__file__).resolve().parents[1]
DROP_IN = "docs/drop-in.md"
DOCS = tuple(
    f"docs/{name}.md"
    for name in (
        "ARCHITECTURE",
        "conventions",
        "format",
        "measurements",
        "attacks",
        "robustness",
        "structured",
        "training",
    )
)
PAGES = ("README.md", *DOCS, DROP_IN, "CHANGELOG.md")
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Made by a build, a run or a tool; no rooms.
MADE = {"build", "dist", "demo-output", "__pycache__"}


def blocks(page: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(TEXT[page]) if language in languages]


def spans(page: str) -> list[str]:
    """Inline code, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXT[page]))


def shell_lines(page: str) -> list[str]:
    """Commands of a page: those of its shell blocks and those in its text."""
    lines = [line for body in blocks(page, "bash") for line in body.splitlines()]
    lines += [line[2:] for body in blocks(page, "console") for line in body.splitlines() if line.startswith("$ ")]
    return lines + spans(page)


def words(line: str) -> list[str]:
    """Split as a shell does, without comments and without variables set in front."""
    split = shlex.split(line, comments=True)
    while split and re.fullmatch(r"[A-Z_]+=\S*", split[0]):
        split = split[1:]
    return split


def commands(program: str) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for page in PAGES:
        for line in shell_lines(page):
            if re.search(rf"(^|\s){program}\s", line) and (split := words(line)) and split[0] == program:
                found.append((page, tuple(split[1:])))
    return found


def section(page: str, title: str) -> str:
    _, found, rest = TEXT[page].partition(f"\n## {title}\n")
    assert found, f"{page} has no section {title!r}"
    return rest.partition("\n## ")[0]


def table(text: str, head: str) -> list[list[str]]:
    """Cells of the rows of the table whose first heading is ``head``."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Examples in docstrings and pages


def has_examples(path: Path) -> bool:
    """Whether an example runs: one that needs a model or files of the reader's own is skipped by doctest."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return any(line.lstrip().startswith(">>> ") and "doctest: +SKIP" not in line for line in lines)


WITH_EXAMPLES = sorted(path.relative_to(ROOT) for path in (ROOT / "pyprune").rglob("*.py") if has_examples(path))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_docstring_examples(path: Path) -> None:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_op_and_the_package_have_an_example() -> None:
    have = {str(path) for path in WITH_EXAMPLES}
    assert "pyprune/__init__.py" in have
    without = {op for op in backends.operations() if f"pyprune/ops/{op}.py" not in have}
    assert without <= {"sparsegpt"}  # its factor takes more lines than it would explain


@dataclass
class Ran:
    folder: Path
    names: dict[str, Any]
    blocks: int


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The README's Python blocks, one after another, with a tiny model in place of the demo's."""
    folder = tmp_path_factory.mktemp("readme")
    tiny = build_checkpoint(folder / "tiny")
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(demo, "model_folder", lambda: tiny)
        code = blocks("README.md", "python")
        for number, body in enumerate(code):
            exec(compile(body, f"README.md, Python block {number}", "exec"), found)
        yield Ran(folder, found, len(code))


def test_readme_whole_model(readme: Ran) -> None:
    assert readme.blocks == 3
    result = readme.names["result"]
    assert result.report["method"] == "akr"
    assert result.report["sparsity"]["linear_weights"] == 0.5
    saved = readme.names["again"].state_dict()
    for name, mask in result.masks.items():
        assert bool((saved[f"{name}.weight"][~mask] == 0).all()), name
        assert pyprune.Unstructured(0.5).holds(mask), name


def test_readme_smaller_and_faster(readme: Ran) -> None:
    assert (readme.folder / "small" / "pyprune.safetensors").is_file()
    assert readme.names["faster"] is readme.names["model"]
    tokens = torch.arange(5, 17).reshape(2, 6)
    with torch.inference_mode():
        wanted = readme.names["again"](input_ids=tokens).logits
        torch.testing.assert_close(readme.names["faster"](input_ids=tokens).logits, wanted, atol=1e-4, rtol=0)


def test_readme_one_matrix(readme: Ran) -> None:
    found = readme.names
    assert found["solution"].sparsity == 0.5
    assert found["solution"].error < found["in_groups"].error
    assert pyprune.NM(2, 4).holds(found["in_groups"].mask)
    assert pyprune.Block(4, 2, 0.5).holds(found["in_blocks"].mask)
    assert int(found["by_layer"].mask.sum()) == round(0.3 * found["W"].numel())
    assert [round(point.sparsity, 1) for point in found["curve"]] == [0.3, 0.5, 0.7, 0.9]


def test_no_python_elsewhere() -> None:
    others = [page for page in PAGES if page not in {"README.md", DROP_IN}]
    assert not [page for page in others if blocks(page, "python")], "run these blocks in the tests too"


def test_drop_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's Python blocks one after another, and the imports of its diffs."""
    from pyprune.compat.sparsegpt import SparseGPT

    monkeypatch.setattr(SparseGPT, "default_solver", SparseGPT.default_solver)  # the page switches it
    found: dict[str, Any] = {}
    for number, body in enumerate(blocks(DROP_IN, "python")):
        exec(compile(body, f"{DROP_IN}, Python block {number}", "exec"), found)
    changed = [line for body in blocks(DROP_IN, "diff") for line in body.splitlines() if line.startswith("+")]
    for line in changed:
        exec(compile(line[1:], DROP_IN, "exec"), found)
    assert len(changed) == 3
    assert SparseGPT.default_solver == found["better"].solver == "best"
    assert pyprune.NM(2, 4).holds(found["layer"].weight != 0)
    zeros = {name: int((found[name] == 0).sum()) for name in ("half", "most", "in_blocks", "weight")}
    assert zeros == {"half": 1024, "most": 1844, "in_blocks": 1024, "weight": 1024}
    assert found["hessians"] == {}
    imports = [names(row[1])[0] for row in table(TEXT[DROP_IN], "instead of")]
    assert imports == [f"{found[name].__module__}.{name}" for name in ("SparseGPT", "TrueOBS", "sparsify_weight")]


# Commands, targets, paths and names


def test_command_lines_parse() -> None:
    parser = cli.build_parser()
    (subparsers,) = (action.choices for action in parser._actions if action.dest == "command")
    lines = [entry for entry in commands("pyprune") if entry[1]]
    assert {line[0] for _, line in lines} == set(subparsers)
    assert sum(len(line) > 1 for _, line in lines) >= 7
    for page, line in lines:
        if len(line) == 1 and line[0] in subparsers:
            continue  # a command that is only named
        try:
            parser.parse_args(line)
        except SystemExit:
            pytest.fail(f"{page}: pyprune {shlex.join(line)} is not understood")


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    mentioned = {word for _, line in commands("make") for word in line}
    assert {"demo", "test", "lint"} <= mentioned
    assert mentioned <= targets
    assert {"demo", "test", "lint", "bench", "env", "clean", "help"} <= targets


def test_extras_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    mentioned = {extra for page in PAGES for extra in re.findall(r"\.\[(\w+)\]", TEXT[page])}
    assert mentioned == {"data", "gpu"}
    for extra in mentioned:
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), extra


def paths(page: str) -> list[tuple[Path, str]]:
    """Where a path is looked for, and the path; ``<op>`` stands for any name."""
    rooms = {entry.name for entry in ROOT.iterdir()}
    found = [((ROOT / page).parent, link) for link in re.findall(r"\]\(([^)#:]+)\)", TEXT[page])]
    for text in spans(page):
        inside = re.fullmatch(r"([\w.-]+)/[\w./<>*-]*", text)
        bare = re.fullmatch(r"[\w.-]+\.(py|md|toml|cff)|Makefile|CMakeLists\.txt|\.clang-format", text)
        if bare or (inside and inside[1] in rooms):
            found.append((ROOT, text))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    for base, text in paths(page):
        assert list(base.glob(re.sub(r"<\w+>", "*", text.rstrip("/")))), f"{page}: {text}"


def test_paths_are_seen() -> None:
    assert {"LICENSE", "CITATION.cff", "docs/ARCHITECTURE.md"} <= {text for _, text in paths("README.md")}
    assert {"csrc/cpu/<op>.cpp", "pyprune/ops/", "CMakeLists.txt"} <= {t for _, t in paths("docs/ARCHITECTURE.md")}


def test_dotted_names_exist() -> None:
    seen = set()
    for page in PAGES:
        for text in spans(page):
            match = re.match(r"pyprune((?:\.[A-Za-z_]\w*)+)(?![\w.:])", text)
            if match is None or text.startswith(("pyprune.json", "pyprune.safetensors")):
                continue
            value: Any = pyprune
            for part in match[1].strip(".").split("."):
                if not hasattr(value, part):
                    value = importlib.import_module(f"{value.__name__}.{part}")
                else:
                    value = getattr(value, part)
            seen.add(text)
    assert {"pyprune.backends.choose", "pyprune.solve", "pyprune._C"} <= seen


def test_environment_variables() -> None:
    sources = [*(ROOT / "pyprune").rglob("*.py"), ROOT / "setup.py", *(ROOT / "csrc").rglob("*.cpp")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    read = set(re.findall(r"""["'](PYPRUNE_[A-Z_]+|MAX_JOBS)["']""", code))
    listed = {names(row[0])[0] for row in table(section("docs/conventions.md", "Environment variables"), "name")}
    assert listed == read
    # Names in capitals that are not read at run time: one macro of the kernels.
    mentioned = {name for page in PAGES for name in re.findall(r"PYPRUNE_[A-Z_]+", TEXT[page])}
    assert mentioned - {"PYPRUNE_ISA"} <= read


# Tables


def test_floors() -> None:
    page = section("docs/ARCHITECTURE.md", "Floors")
    rows = table(page, "floor")
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert [set(names(rooms)) for _, rooms in rows] == test_house.FLOORS
    pairs = re.findall(r"`(\w+)` from((?:(?:,| and)?\s+`\w+`)+)", page)
    assert {(room, other) for room, others in pairs for other in names(others)} == test_house.SAME_FLOOR
    assert {names(library)[0]: set(names(rooms)) for library, rooms in table(page, "library")} == test_house.ONLY_IN


def rooms_that_exist() -> set[str]:
    top = {
        f"{entry.name}/"
        for entry in ROOT.iterdir()
        if entry.is_dir() and entry.name not in MADE and not entry.name.startswith(".") and entry.suffix != ".egg-info"
    }
    inside = set()
    for entry in (ROOT / "pyprune").iterdir():
        if (entry / "__init__.py").is_file():
            inside.add(f"pyprune/{entry.name}/")
        elif entry.suffix == ".py" and entry.name != "__init__.py":
            inside.add(f"pyprune/{entry.name}")
    kernels = {f"csrc/{entry.name}/" for entry in (ROOT / "csrc").iterdir() if entry.is_dir()}
    return top | inside | kernels


def test_every_room_is_described() -> None:
    page = section("docs/ARCHITECTURE.md", "Rooms")
    inside = page[page.index("Inside the package:") :]
    described = [names(row[0])[0] for row in [*table(page, "room"), *table(inside, "room")]]
    assert len(described) == len(set(described))
    assert set(described) == rooms_that_exist()


def test_methods() -> None:
    rows = table(section("README.md", "Methods and solvers"), "method")
    assert {names(row[0])[0] for row in rows} == set(RECIPES)
    problem = pyprune.LayerProblem(pyprune.ops.gram(demo_features()), pyprune.ops.gram(demo_features()))
    for method, target, solver, scope, ridge, bias in rows:
        recipe = RECIPES[names(method)[0]]
        assert (target == "the dense model's output") == recipe.rectify, method
        assert names(solver) == [recipe.solver], method
        assert scope == solvers.default_pattern(recipe.solver, 0.5).scope, method
        assert (bias == "refitted") == recipe.refit_bias, method
        used = pyprune.solve(problem, pyprune.Unstructured(0.5), recipe.solver).damping
        assert (0.0 if ridge == "none" else float(ridge)) == used, method


def demo_features() -> Any:
    import torch

    return torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def test_solvers_and_families() -> None:
    page = section("README.md", "Methods and solvers")
    assert [names(row[0])[0] for row in table(page, "solver")] == sorted(
        solvers.available(), key=("swap", "best", "fast", "admm", "obs", "sparsegpt", "wanda", "magnitude").index
    )
    listed = page[page.index("Models:") :].partition(", with any head")[0]
    assert tuple(names(listed)) == models.families()


def test_report_entries(readme: Ran) -> None:
    text = section("README.md", "What is saved")
    listed = {word for word in names(text[text.index("Its entries") :]) if re.fullmatch(r"[a-z_]+", word)}
    assert listed == set(readme.names["result"].report) | {"evaluation"}


def test_denominators(readme: Ran) -> None:
    rows = table(section("docs/conventions.md", "Sparsity denominators"), "name")
    assert [names(row[0])[0] for row in rows] == list(readme.names["result"].report["sparsity"])


def test_summary_looks_as_shown(readme: Ran) -> None:
    """Labels and wording of `pyprune prune` in the README; its numbers are those of the demo's model."""
    shown = blocks("README.md", "console")[0].partition("\n")[2].partition("$ pyprune evaluate")[0].splitlines()
    printed = prune_text(readme.names["result"].report, "pruned").splitlines()

    def shape(lines: list[str]) -> list[str]:
        return [re.sub(r"[\d.]+( min \d+)?", "0", line) for line in lines]

    kept = ("method", "zeros", " ")
    zeros = [line for line in shape(shown) if line.startswith(kept)][:8]
    assert len(zeros) == 8
    assert zeros == shape(printed)[:8]
    labels = [line[:13].strip() for line in shown if line[:13].strip()]
    assert labels == [
        *(line[:13].strip() for line in printed[:-1] if line[:13].strip()),
        "accuracy",
        "saved in",
    ]


def test_demo_table() -> None:
    lines = blocks("README.md", "text")[0].splitlines()
    assert re.match(r"A sentiment classifier \(15\.6 M parameters\), pruned on 1,024 review sentences", lines[0])
    assert story.SAMPLES == 1024
    assert re.split(r"\s{2,}", lines[2]) == list(demo_command._HEADER)
    rows = [re.split(r"\s{2,}", line) for line in lines[4:]]
    wanted = [("dense", "0 %")]
    wanted += [(story.NAMES[method], f"{100 * s:g} %") for s in story.SPARSITIES for method in story.METHODS]
    assert [(row[0], row[1]) for row in rows] == wanted
    for row in rows:
        right, total = map(int, row[3].split(" of "))
        assert row[2] == f"{100 * right / total:.2f} %", row


# Files of the project


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    for number in range(1, 10):
        assert re.search(rf"^ +{number}\. [A-Z]", text, re.MULTILINE), number
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.splitlines()) == 202


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'\nversion: "{pyprune.__version__}"\n' in citation
    assert "\ncff-version: 1.2.0\n" in citation
    assert f"\n## [{pyprune.__version__}]" in TEXT["CHANGELOG.md"]
    assert "\n## [Unreleased]\n" in TEXT["CHANGELOG.md"]


def test_cited_papers_are_those_of_the_methods() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pyprune").rglob("*.py"))
    said = set()
    for paper in citation["references"]:
        first, year = paper["authors"][0]["family-names"], paper["year"]
        assert re.search(rf"{first} (et al\.|& \w+)(,? \w+)?,? {year}", code), paper["title"]
        (identifier,) = paper["identifiers"]
        assert paper["url"] == f"https://arxiv.org/abs/{identifier['value'].removeprefix('arXiv:')}"
        said |= set(re.findall(r"\w+", paper["notes"])) & {*RECIPES, *solvers.available()}
    assert said == {*RECIPES, *solvers.available()} - {"magnitude"}


def test_readme_is_short() -> None:
    assert len(TEXT["README.md"].splitlines()) <= 246
