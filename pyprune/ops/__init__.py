# SPDX-License-Identifier: Apache-2.0
"""The one door to kernels: one file per op with contract, float64 reference, registration and fake kernel.

The device of the tensors decides the kernel (see :mod:`pyprune.backends`); a caller never asks.
"""

from pyprune.ops.admm_step import admm_step
from pyprune.ops.bank_scores import BankScores, bank_scores
from pyprune.ops.block_obs import block_obs
from pyprune.ops.cholesky import cholesky
from pyprune.ops.cross_gram import cross_gram
from pyprune.ops.draw_counts import draw_counts
from pyprune.ops.encoder import encoder
from pyprune.ops.gram import gram
from pyprune.ops.masked_cg import masked_cg
from pyprune.ops.masked_lstsq import masked_lstsq
from pyprune.ops.matmul import matmul
from pyprune.ops.nm import nm
from pyprune.ops.obs import obs
from pyprune.ops.rescale import rescale
from pyprune.ops.select import select
from pyprune.ops.sparse_weight import SparseWeight, compress
from pyprune.ops.sparsegpt import sparsegpt
from pyprune.ops.spmm import prepare, spmm
from pyprune.ops.swap import swap
from pyprune.ops.symmetrise import symmetrise

__all__ = [
    "BankScores",
    "SparseWeight",
    "admm_step",
    "bank_scores",
    "block_obs",
    "cholesky",
    "compress",
    "cross_gram",
    "draw_counts",
    "encoder",
    "gram",
    "masked_cg",
    "masked_lstsq",
    "matmul",
    "nm",
    "obs",
    "prepare",
    "rescale",
    "select",
    "sparsegpt",
    "spmm",
    "swap",
    "symmetrise",
]
