# SPDX-License-Identifier: Apache-2.0
"""CUDA sources compiled for the host, with the headers of ``emulated/`` in place of CUDA's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CASES = HERE / "emulated"
CUDA = HERE.parents[1] / "csrc" / "cuda"
INCLUDES = ("-I", str(CASES), "-I", str(CUDA))


def compiler_or_skip() -> str:
    """A C++ compiler, from ``CXX`` or the path."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        pytest.skip("no C++ compiler found (g++ or clang++)")
    return compiler
