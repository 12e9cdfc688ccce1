# SPDX-License-Identifier: Apache-2.0
"""The source distribution builds into a wheel that holds what it must, nothing else, and works where it is unpacked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made of a copy of the tree (the checkout itself stays as it is)."""
    tree = tmp_path_factory.mktemp("checkout") / "tree"
    skipped = shutil.ignore_patterns(".git", ".venv", ".compat", "build", "dist", "*.so", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=skipped)
    target = tmp_path_factory.mktemp("sdist")
    _run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(target)!r})", cwd=tree)
    (archive,) = target.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of it, built in isolation, where no torch is installed. Not optimised: that is quicker."""
    target = tmp_path_factory.mktemp("wheel")
    constraints = str(ROOT / "constraints.txt")
    _run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", target, source),
        cwd=target,
        PYPRUNE_CUDA="OFF",
        PYPRUNE_BUILD_TYPE="Debug",
        PIP_CONSTRAINT=constraints,
        PIP_BUILD_CONSTRAINT=constraints,
    )
    (file,) = target.glob("*.whl")
    return file


def test_source_distribution_is_complete(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "setup.py", "LICENSE", "README.md", "csrc/bindings.cpp", "csrc/exports.map"} <= names
    assert {"triton_kernels/gram.py", "csrc/cuda/gram.cu", "tests/conftest.py", "docs/ARCHITECTURE.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_holds_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"pyprune"}
    assert {"pyprune/py.typed", "pyprune/triton_kernels/gram.py"} <= set(names)
    assert "pyprune/demo/assets/reviews-minilm/model.safetensors" in names
    assert "pyprune/demo/assets/review_sentences/README.md" in names
    assert "pyprune/attack/requirements.txt" in names
    assert "pyprune/report/style.css" in names
    assert len([name for name in names if name.endswith(".so")]) == 1
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".h", ".pyc"))]


def test_wheel_needs_what_it_declares(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(file).decode().splitlines()
    needed = {line.split(":")[1].split(">")[0].strip() for line in lines if line.startswith("Requires-Dist")}
    assert {"torch", "numpy", "safetensors", "transformers", "rich"} <= needed
    assert "License-Expression: Apache-2.0" in lines


def test_unpacked_wheel_works(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    program = (
        "import torch, pyprune, pyprune.triton_kernels\n"
        "problem = pyprune.LayerProblem(torch.ones(2, 4), torch.eye(4))\n"
        "print(pyprune.__file__, pyprune.backends.choose('obs', 'cpu').backend)\n"
        "print(pyprune.solve(problem, pyprune.NM(2, 4), 'obs').error)\n"
    )
    where, backend, error = _run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(place)).split()
    assert where == str(place / "pyprune" / "__init__.py")
    assert backend == "cpp"
    assert float(error) == pytest.approx(0.5, rel=1e-5)  # the default ridge pulls the kept weights to where they were
    info = json.loads(_run(sys.executable, "-m", "pyprune", "info", "--json", cwd=tmp_path, PYTHONPATH=str(place)))
    assert info["extension"]["cuda"] is False
