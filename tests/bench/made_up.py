# SPDX-License-Identifier: Apache-2.0
"""Records of benchmarks with made-up numbers."""

from __future__ import annotations

from typing import Any

MACHINE = {"cpu": "Made-up 9000", "threads": 2, "torch": "2.9", "pyprune": "0.1.0"}


def timed(seconds: float) -> dict[str, Any]:
    """A result of so many seconds."""
    return {"status": "timed", "median": seconds, "error": 0.0}


def spmm_record(*cases: tuple[tuple[int, int], int, float, dict[str, Any]], **changed: Any) -> dict[str, Any]:
    """Cases of shape, tokens, sparsity and seconds (or a result) by candidate."""
    kinds = {"pyprune": "pyprune", "mine": "registered", "scipy": "sparse", "torch.csr": "sparse"}
    names = dict.fromkeys(name for case in cases for name in case[3])
    return {
        "kind": "spmm",
        "machine": MACHINE,
        "interrupted": False,
        "missing": {},
        "candidates": {name: {"kind": kinds.get(name, "dense"), "version": "1"} for name in names},
        "cases": [
            {
                "shape": list(shape),
                "tokens": tokens,
                "sparsity": sparsity,
                "dtype": "float32",
                "pattern": "unstructured",
                "results": {
                    name: value if isinstance(value, dict) else timed(value) for name, value in results.items()
                },
            }
            for shape, tokens, sparsity, results in cases
        ],
        **changed,
    }


def model_record(*cases: tuple[int, int | str, dict[str, Any]], **changed: Any) -> dict[str, Any]:
    """Cases of batch, length and seconds (or a result) by candidate; memory and accuracy of the first dense one."""
    names = dict.fromkeys(name for case in cases for name in case[2])
    return {
        "kind": "model",
        "machine": MACHINE,
        "interrupted": False,
        "missing": {},
        "models": {which: {"disk": {"folder": None, "linears": None}} for which in ("dense", "pruned")},
        "candidates": {
            name: {"model": name.split()[0], "ours": "optimize" in name, "memory": None, "evaluation": None}
            for name in names
        },
        "cases": [
            {
                "batch": batch,
                "length": length,
                "results": {
                    name: value if isinstance(value, dict) else timed(value) for name, value in results.items()
                },
            }
            for batch, length, results in cases
        ],
        **changed,
    }
