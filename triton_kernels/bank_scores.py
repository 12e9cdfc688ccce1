# SPDX-License-Identifier: Apache-2.0
"""Scores of queries against a bank, s_ic = q_i^T c / τ, reduced to what contrastive losses need, and their gradient.

`pyprune/ops/bank_scores.py` says what is found.

- `sums_kernel`: a program has a block of queries and a chunk of candidates, which pass by in tiles with a running
  maximum (Milakov and Gimelshein 2018, arXiv:1805.02867); keys are compared tile by tile, so that there is no mask.
- `gradient_kernel` makes the scores again in place of storing them (Dao et al. 2022, arXiv:2205.14135) and adds weights
  times candidates to a gradient of its own for each chunk.

What chunks found is put together by torch, in order: no atomics, equal input gives equal bits on equal hardware. How
many chunks there are is a function of shape and architecture. Queries that are candidates are chunks of their own.

With B queries in blocks of b, N candidates in tiles of t and F features of s bytes: 2 B N F operations, 4 B N F for the
gradient. N F s B / b bytes of candidates and B F s N / t of queries come through the second-level cache, from memory
candidates once while the chunks at work fit there; the gradient reads candidates twice, and adds 8 B F N / t of sums.
Scores of one 16-bit type are multiplied on tensor cores as they are, all else in float32. Sums are float32 in a chunk;
nothing of B x N is stored. Not measured on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pyprune.triton_kernels.bank_scores_kernels import gradient_kernel, sums_kernel
from pyprune.triton_kernels.device import arch_of, processors_of
from pyprune.triton_kernels.token_sums import ELEMENTS, multiplied_as_is

WAVES = 2  # programs for each multiprocessor, where there are as many tiles
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453


@dataclass(frozen=True)
class Tile:
    """How one launch is cut up."""

    queries: int  # of one program
    candidates: int  # at a time
    depth: int  # features at a time
    warps: int
    stages: int


def bank_tile(batch: int, *, itemsize: int, gradient: bool = False) -> Tile:
    """Choose the tile for a batch.

    Parameters
    ----------
    batch : int
    itemsize : int
        Bytes of what scores are products of: 2 where both sides have one 16-bit type, else 4.
    gradient : bool
        Whether weights are multiplied with candidates too, which is done in float32.

    Returns
    -------
    Tile
        float32 is multiplied in less than 64 rows: on compute capability 10 Triton (3.7 at least) would multiply it as
        TF32.
    """
    queries = max(16, triton.next_power_of_2(batch))
    if itemsize == 2 and not gradient:
        return Tile(queries=min(64, queries), candidates=64, depth=32, warps=8, stages=3)
    return Tile(queries=min(32, queries), candidates=64, depth=16, warps=8, stages=3 if itemsize == 2 else 2)


def _itemsize(queries: Tensor, bank: Tensor) -> int:
    return queries.element_size() if queries.dtype == bank.dtype else 4


@dataclass(frozen=True)
class _Source:
    """Candidates of one launch: those of the bank, or the queries (`own`)."""

    bank: Tensor
    keys: Tensor
    rows: Tensor | None
    own: bool
    chunk: int
    chunks: int


def chunks_of(entries: int, batch: int, tile: Tile, arch: int) -> tuple[int, int]:
    """Length of a chunk, whole tiles, and how many: programs for every multiprocessor, if there are tiles for them."""
    blocks, tiles = triton.cdiv(batch, tile.queries), triton.cdiv(entries, tile.candidates)
    most = max(1, triton.cdiv(WAVES * processors_of(arch), blocks))
    each = max(1, triton.cdiv(tiles, most))
    return each * tile.candidates, triton.cdiv(tiles, each)


def _sources(
    queries: Tensor, keys: Tensor, bank: Tensor, bank_keys: Tensor, rows: Tensor | None, in_batch: bool, tile: Tile
) -> list[_Source]:
    arch, found = arch_of(queries.device), []
    given = ([(queries, keys, None, True)] if in_batch else []) + [(bank, bank_keys, rows, False)]
    for source, its_keys, its_rows, own in given:
        chunk, chunks = chunks_of(its_keys.shape[1], len(queries), tile, arch)
        found += [_Source(source, its_keys, its_rows, own, chunk, chunks)] if chunks else []
    return found


def _arguments(queries: Tensor, keys: Tensor, source: _Source, temperature: float, tile: Tile) -> dict[str, object]:
    """What both kernels are told."""
    return {
        "queries_ptr": queries,
        "keys_ptr": keys,
        "bank_ptr": source.bank,
        "bank_keys_ptr": source.keys,
        "rows_ptr": source.rows,
        "batch": len(queries),
        "features": queries.shape[1],
        "kinds": len(keys),
        "length": len(source.bank),
        "entries": source.keys.shape[1],
        "stride": source.bank.stride(0),
        "chunk": source.chunk,
        "scale": LOG2E / temperature,
        "HAS_ROWS": source.rows is not None,
        "OWN": source.own,
        "AS_IS": source.bank.dtype == queries.dtype and multiplied_as_is(queries.dtype, queries.device),
        "QUERIES": tile.queries,
        "CANDIDATES": tile.candidates,
        "DEPTH": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
    }


def score_sums(
    log_sum: Tensor,  # [batch] float32
    positives: Tensor,  # [kinds, batch] float32
    counts: Tensor,  # [kinds, batch] int64
    certain: Tensor,  # [kinds, batch] bool
    queries: Tensor,  # [batch, features]
    keys: Tensor,  # [kinds, batch] int64
    bank: Tensor,  # [length, features]
    bank_keys: Tensor,  # [kinds, entries] int64
    rows: Tensor | None,  # [entries] int64
    temperature: float,
    in_batch: bool,
    *,
    tile: Tile | None = None,
) -> None:
    """Fill in what `pyprune.ops.bank_scores` returns.

    Parameters
    ----------
    log_sum, positives, counts, certain : Tensor
        Overwritten.
    queries : Tensor, shape (batch, features), float32, bfloat16 or float16
        Contiguous, as all are but the bank.
    bank : Tensor, shape (length, features), float32, bfloat16 or float16
        Features contiguous; any stride of rows.
    keys, bank_keys, rows, temperature, in_batch
        As the op takes them; a row that is not in the bank enters NaN.
    tile : Tile, optional
        In place of `bank_tile`'s choice, for measurements and tests.

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts or devices do not fit.
    """
    kinds, batch = _check(queries, keys, bank, bank_keys, rows)
    given = {"log_sum": (log_sum, torch.float32, (batch,)), "positives": (positives, torch.float32, (kinds, batch))}
    given |= {"counts": (counts, torch.int64, (kinds, batch)), "certain": (certain, torch.bool, (kinds, batch))}
    _check_all(given, queries.device)
    tile = tile or bank_tile(batch, itemsize=_itemsize(queries, bank))
    sources = _sources(queries, keys, bank, bank_keys, rows, in_batch, tile) if batch else []
    chunks = sum(source.chunks for source in sources)
    if not chunks:
        log_sum.fill_(-torch.inf)
        for tensor in (positives, counts, certain):
            tensor.zero_()
        return
    largest, total = queries.new_empty(2, chunks, batch, dtype=torch.float32)
    sums, best = queries.new_empty(2, chunks, kinds, batch, dtype=torch.float32)
    numbers = counts.new_empty(chunks, kinds, batch, dtype=torch.int32)
    first = 0
    with torch.cuda.device_of(queries):  # Triton launches on the current device; no effect on CPU tensors
        for source in sources:
            outputs = (part[first:] for part in (largest, total, sums, best, numbers))
            sums_kernel[(triton.cdiv(batch, tile.queries), source.chunks)](
                *outputs,
                KINDS=triton.next_power_of_2(max(1, kinds)),
                **_arguments(queries, keys, source, temperature, tile),
            )
            first += source.chunks
    top = largest.amax(dim=0)
    whole = (total * (largest - top).double().exp2()).sum(dim=0)
    log_sum.copy_((top + whole.log2()) * LN2)
    positives.copy_(sums.sum(dim=0, dtype=torch.float64) * LN2)
    torch.sum(numbers, dim=0, out=counts)
    certain.copy_((counts > 0) & (best.amax(dim=0) == top) & (whole.float() == 1.0))


def score_gradient(
    gradient: Tensor,  # [batch, features]
    log_sum: Tensor,  # [batch] float32
    to_log_sum: Tensor,  # [batch] float32
    to_positives: Tensor,  # [kinds, batch] float32
    queries: Tensor,  # [batch, features]
    keys: Tensor,  # [kinds, batch] int64
    bank: Tensor,  # [length, features]
    bank_keys: Tensor,  # [kinds, entries] int64
    rows: Tensor | None,  # [entries] int64
    temperature: float,
    in_batch: bool,
    *,
    tile: Tile | None = None,
) -> None:
    """Fill in the gradient by the queries, given those by `log_sum` and `positives`.

    Parameters
    ----------
    gradient : Tensor, shape (batch, features)
        Overwritten, in a dtype of its own.
    log_sum : Tensor, shape (batch,), float32
        As `score_sums` gives it.
    to_log_sum, to_positives : Tensor, shapes (batch,) and (kinds, batch), float32
    queries, keys, bank, bank_keys, rows, temperature, in_batch, tile
        As of `score_sums`.

    Raises
    ------
    ValueError
        Shapes, dtypes, layouts or devices do not fit.
    """
    kinds, batch = _check(queries, keys, bank, bank_keys, rows)
    given = {"log_sum": (log_sum, torch.float32, (batch,)), "to_log_sum": (to_log_sum, torch.float32, (batch,))}
    given |= {"to_positives": (to_positives, torch.float32, (kinds, batch))}
    given |= {"gradient": (gradient, gradient.dtype, tuple(queries.shape))}
    _check_all(given, queries.device)
    tile = tile or bank_tile(batch, itemsize=_itemsize(queries, bank), gradient=True)
    sources = _sources(queries, keys, bank, bank_keys, rows, in_batch, tile) if batch else []
    parts = queries.new_empty(sum(source.chunks for source in sources), *queries.shape, dtype=torch.float32)
    powers, slopes = (log_sum.double() * LOG2E).float(), (to_log_sum / temperature, to_positives / temperature)
    first = 0
    with torch.cuda.device_of(queries):
        for source in sources:
            gradient_kernel[(triton.cdiv(batch, tile.queries), source.chunks)](
                parts[first:], powers, *slopes, **_arguments(queries, keys, source, temperature, tile)
            )
            first += source.chunks
    gradient.copy_(parts.sum(dim=0))


def _check(queries: Tensor, keys: Tensor, bank: Tensor, bank_keys: Tensor, rows: Tensor | None) -> tuple[int, int]:
    """Kinds and batch of what fits."""
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1] or keys.ndim != 2:
        raise ValueError(
            f"queries {tuple(queries.shape)}, keys {tuple(keys.shape)}, bank {tuple(bank.shape)}: no match"
        )
    if queries.dtype not in ELEMENTS or bank.dtype not in ELEMENTS:
        raise ValueError(f"queries and bank must be of {ELEMENTS}, got {queries.dtype} and {bank.dtype}")
    if (bank.stride(1) != 1 and bank.shape[1] > 1) or bank.device != queries.device:
        raise ValueError(f"the bank's features must be contiguous and on {queries.device}, got {bank.stride()}")
    kinds, entries = len(keys), len(bank) if rows is None else len(rows)
    given = {"queries": (queries, queries.dtype, tuple(queries.shape))}
    given |= {
        "keys": (keys, torch.int64, (kinds, len(queries))),
        "bank_keys": (bank_keys, torch.int64, (kinds, entries)),
    }
    given |= {} if rows is None else {"rows": (rows, torch.int64, (entries,))}
    _check_all(given, queries.device)
    return kinds, len(queries)


def _check_all(given: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]], device: torch.device) -> None:
    for name, (tensor, dtype, shape) in given.items():
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device != device:
            raise ValueError(
                f"{name} must be contiguous {dtype} {shape} on {device}, got {tensor.dtype} {tuple(tensor.shape)} "
                f"on {tensor.device}"
            )
