# SPDX-License-Identifier: Apache-2.0
"""CUDA sources compiled for the host, with the headers of ``emulated/`` in place of CUDA's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyprune import backends
from pyprune.ops import library

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


class Emulated:
    """The compiled extension with the emulated kernels in it: they take CPU tensors."""

    def __init__(self, library: ctypes.CDLL, extension: Any) -> None:
        self._library, self._extension = library, extension
        for name in (
            "masked_factor_size",
            "masked_factor_on_chip",
            "obs_blocks",
            "obs_workspace",
            "block_obs_plan_cuda",
        ):
            getattr(library, name).restype = ctypes.c_int64

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name, None)
        if function is None:
            return getattr(self._extension, name)
        # All arguments fit a register of their own, whatever their type.
        return lambda *arguments: function(*(ctypes.c_int64(int(argument)) for argument in _flat(arguments)))

    def obs_plan_cuda(self, kind: int, columns: int, stride: int, steps: int, keep: int, of: int) -> tuple[int, int]:
        return self.obs_blocks(kind, columns, stride, steps, keep, of), self.obs_workspace(stride, steps)


def _flat(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """What is in tuples comes one by one."""
    for argument in arguments:
        yield from argument if isinstance(argument, tuple) else (argument,)


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The row kernels for the host, without sanitizers."""
    target = tmp_path_factory.mktemp("emulated") / "kernels.so"
    kernels = [str(CUDA / name) for name in ("masked_lstsq.cu", "obs.cu", "block_obs.cu", "spmm.cu")]
    command = [compiler_or_skip(), "-std=c++20", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", *INCLUDES]
    sources = [*kernels, str(CASES / "exports.cpp")]
    done = subprocess.run([*command, "-x", "c++", *sources, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))


@pytest.fixture
def emulated(emulated_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """CPU tensors go the way of CUDA tensors, with emulated kernels."""
    kernels = Emulated(emulated_library, backends.extension())
    kernels.emulate_device(3, 227 * 1024)
    choose = backends.choose

    def choose_cuda(op: str, device: str) -> backends.Choice:
        function = backends._TABLE[op].get("cuda") if op in ("masked_lstsq", "obs", "block_obs", "spmm") else None
        return choose(op, device) if function is None else backends.Choice("cuda", function, ())

    monkeypatch.setattr(backends, "choose", choose_cuda)
    monkeypatch.setattr(backends, "extension", lambda: kernels)
    monkeypatch.setattr(library, "cuda_stream", lambda tensor: contextlib.nullcontext(0))
    return kernels
