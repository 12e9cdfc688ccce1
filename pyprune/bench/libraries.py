# SPDX-License-Identifier: Apache-2.0
"""Sparse rivals: torch's own formats, SciPy, and MKL where ``sparse_dot_mkl`` is installed.

These libraries multiply ``W`` by columns of inputs, so that the inputs are turned before and the result after the
product; that is part of what a layer would have to do, and is timed. Of two ways the faster one is here.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from pyprune.bench.registry import Answer, Candidate, Prepared, Problem
from pyprune.patterns import Block

_FLOAT32 = "float32 only"


def _torch_csr(problem: Problem) -> Answer:
    if problem.dtype != torch.float32:
        return None, _FLOAT32
    sparse = problem.weight.to_sparse_csr()
    return Prepared(lambda x: (sparse @ x.t()).t(), _bytes(sparse))


def _torch_bsr(problem: Problem) -> Answer:
    if problem.dtype != torch.float32:
        return None, _FLOAT32
    if not isinstance(problem.pattern, Block):
        return None, "for blocks only"
    sparse = problem.weight.to_sparse_bsr((problem.pattern.rows, problem.pattern.cols))
    return Prepared(lambda x: (sparse @ x.t()).t(), _bytes(sparse))


def _scipy(problem: Problem) -> Answer:
    if problem.dtype != torch.float32:
        return None, _FLOAT32
    sparse = _csr(problem.weight)

    def multiply(x: Tensor) -> Tensor:
        if len(x) == 1:
            return torch.from_numpy(sparse @ x[0].numpy())[None]
        return torch.from_numpy(sparse @ x.numpy().T).t()

    return Prepared(multiply, sparse.data.nbytes + sparse.indices.nbytes + sparse.indptr.nbytes)


def _mkl(problem: Problem) -> Answer:
    if problem.dtype != torch.float32:
        return None, _FLOAT32
    # its own OpenMP's threads would spin for 200 ms after each call, on the cores of whoever is next; read when loaded
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    from sparse_dot_mkl import dot_product_mkl, mkl_set_num_threads

    mkl_set_num_threads(torch.get_num_threads())
    sparse = _csr(problem.weight)

    def multiply(x: Tensor) -> Tensor:
        if len(x) == 1:
            return torch.from_numpy(dot_product_mkl(sparse, x[0].numpy()))[None]
        return torch.from_numpy(dot_product_mkl(sparse, x.numpy().T)).t()

    return Prepared(multiply, sparse.data.nbytes + sparse.indices.nbytes + sparse.indptr.nbytes)


def _csr(weight: Tensor) -> Any:
    from scipy import sparse

    return sparse.csr_matrix(weight.numpy())


def _bytes(sparse: Tensor) -> int:
    parts = (sparse.values(), sparse.col_indices(), sparse.crow_indices())
    return sum(part.numel() * part.element_size() for part in parts)


CANDIDATES = (
    Candidate("torch.csr", "sparse", _torch_csr),
    Candidate("torch.bsr", "sparse", _torch_bsr),
    Candidate("scipy", "sparse", _scipy, ("scipy",)),
    Candidate("mkl.sparse", "sparse", _mkl, ("sparse_dot_mkl", "scipy")),
)
