# SPDX-License-Identifier: Apache-2.0
"""The plan of the house (docs/ARCHITECTURE.md), held: who may import whom, and what stays out of which room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pyprune"

# Floors from the ground up; a room may import its own floor's rooms only where `SAME_FLOOR` says so.
FLOORS = [
    {"errors", "version"},
    {"files"},
    {"backends"},
    {"ops"},
    {"patterns", "units", "budgets", "latency"},
    {"solvers", "stats", "models", "tasks"},
    {"structured"},
    {"sparse", "training"},
    {"result"},
    {"methods", "compat"},
    {"demo", "bench", "attack", "report", "progress", "commands"},
    {"cli"},
    {"__main__"},
]
SAME_FLOOR = {
    *(("commands", other) for other in ("demo", "bench", "attack", "report", "progress")),
    *((room, other) for room in ("demo", "bench", "attack") for other in ("progress", "commands")),
    ("report", "commands"),
    ("budgets", "units"),
    ("latency", "units"),
}
ONLY_IN = {
    "transformers": {
        "models",
        "methods",
        "tasks",
        "structured",
        "sparse",
        "training",
        "result",
        "attack",
        "demo",
        "commands",
        "cli",
    },
    "datasets": {"tasks"},
    "pyarrow": {"tasks"},
    "matplotlib": {"bench", "report"},
    "textattack": {"attack"},
    "nltk": {"attack"},
    "rich": {"progress", "cli", "commands", "demo"},
    "pybind11": set(),
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "pyprune" else {node.module}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) != "__init__")


def floor(room: str) -> int:
    found = [index for index, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"room {room!r} is not in the plan: put it on a floor, and into docs/ARCHITECTURE.md"
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "pyprune" or len(parts) < 2 or parts[1] in {room, "__version__", "_C", "triton_kernels"}:
            continue
        target = parts[1]
        if target not in {r for rooms in FLOORS for r in rooms}:
            continue  # a name of the package itself, such as pyprune.solve
        allowed = floor(target) < floor(room) or (room, target) in SAME_FLOOR
        assert allowed, f"{room} may not import {target} ({path.name}: {name})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path):
    for name in imports(path):
        rooms = ONLY_IN.get(name.split(".")[0])
        assert rooms is None or room_of(path) in rooms, f"{room_of(path)} may not import {name}"


def test_files_have_one_subject():
    too_long = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not too_long, f"split these: {too_long}"


def test_every_triton_kernel_is_interpreted_and_compiled():
    root = PACKAGE.parent
    for path in (root / "triton_kernels").glob("*.py"):
        op = path.stem
        if op == "__init__" or not (PACKAGE / "ops" / f"{op}.py").is_file():  # what several share
            continue
        assert f'implements("{op}", "triton")' in (PACKAGE / "ops" / f"{op}.py").read_text(encoding="utf-8")
        tests = root / "tests" / "triton_kernels"
        assert (tests / f"{op}_cases.py").is_file(), op
        assert ".hold()" in (tests / f"test_{op}.py").read_text(encoding="utf-8"), op


# What ops share, in their room.
SHARED = {
    *("__init__", "library", "masked_systems", "places", "sparse_weight", "sparse_rows", "sparse_tiles"),
    *("sparse_windows", "semi_structured", "spmm_plan", "spmm_few", "spmm_gpu", "gpu_plan", "tile_products"),
    *("exponential_race", "races"),
}


def test_every_op_has_its_four_faces():
    root = PACKAGE.parent
    for path in (PACKAGE / "ops").glob("*.py"):
        op = path.stem
        if op in SHARED:
            continue
        assert (root / "csrc" / "cpu" / f"{op}.cpp").is_file(), op
        assert (root / "tests" / "ops" / f"test_{op}.py").is_file(), op
        assert f"def {op}_reference(" in path.read_text(encoding="utf-8"), op
