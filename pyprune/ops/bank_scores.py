# SPDX-License-Identifier: Apache-2.0
"""Scores of queries against a bank of representations, reduced to what contrastive losses need."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyprune import backends
from pyprune.errors import InputError
from pyprune.ops import library


class BankScores(NamedTuple):
    """Sums over candidates, by query; ``kinds`` of positives."""

    log_sum: Tensor  # [batch]
    positives: Tensor  # [kinds, batch]
    counts: Tensor  # [kinds, batch], int64
    certain: Tensor  # [kinds, batch], bool


def bank_scores(
    queries: Tensor,  # [batch, features]
    keys: Tensor,  # int64 [kinds, batch]
    bank: Tensor,  # [length, features]
    bank_keys: Tensor,  # int64 [kinds, entries]
    *,
    rows: Tensor | None = None,  # int64 [entries]
    temperature: float = 1.0,
    in_batch: bool = False,
) -> BankScores:
    """Sums of ``s_ic = q_iᵀ c / τ`` over a bank's candidates ``c``, without the matrix of scores.

    With ``log p_i(c) = s_ic − log_sum_i``, a query's mean of ``log p`` over its positives of kind ``x``, those with an
    equal key of that kind, is ``positives / counts − log_sum``: InfoNCE where there is one positive, SupCon (Khosla et
    al. 2020, equation 2) where keys are labels. There is a gradient for the queries, none for candidates.

    Parameters
    ----------
    queries : Tensor, shape (batch, features)
        Any floating dtype, any length.
    keys : Tensor of int64, shape (kinds, batch)
        Row numbers or labels, say; there may be no kind at all.
    bank : Tensor, shape (length, features)
        Any floating dtype. Rows may lie apart, and in a file that is mapped into memory: only candidates are read.
    bank_keys : Tensor of int64, shape (kinds, entries)
        Keys of the candidates.
    rows : Tensor of int64, shape (entries,), optional
        Which of the bank's rows are candidates; all of them by default.
    temperature : float
        ``τ > 0``.
    in_batch : bool
        The other queries are candidates too. Queries with equal keys are positives of each other.

    Returns
    -------
    BankScores
        ``log_sum`` is ``log Σ_c exp s_ic``, −inf without candidates; ``positives`` are sums of ``s_ic`` over positives
        and ``counts`` their numbers; ``certain``: one of them has all of the probability, so that its ``log p`` is 0
        in the dtype of the sums. That is float32, for float64 queries float64.

    Notes
    -----
    Candidates pass by once and once more for the gradient, which makes the scores again: no memory of
    batch x entries. Sums are float32. On a CPU they are the same bits for any number of threads, and a query's depend
    on no other query; by Triton they are the same bits for the same shapes. Queries in float64 are for the reference.

    Raises
    ------
    InputError
        Shapes, dtypes or devices do not fit, or a row that is not in the bank; Triton makes sums with such a row NaN.

    Examples
    --------
    >>> query, bank = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> found = bank_scores(query, torch.tensor([[7]]), bank, torch.tensor([[7, 5, 7]]))
    >>> found.positives / found.counts - found.log_sum
    tensor([[-0.7586]])
    """
    _check(queries, keys, bank, bank_keys, rows, temperature)
    bank = bank if bank.stride(1) == 1 or bank.shape[1] <= 1 else bank.contiguous()
    found = _bank_scores(
        queries.contiguous(),
        keys.contiguous(),
        bank.detach(),
        bank_keys.contiguous(),
        None if rows is None else rows.contiguous(),
        float(temperature),
        in_batch,
    )
    return BankScores(*found)


def _check(
    queries: Tensor, keys: Tensor, bank: Tensor, bank_keys: Tensor, rows: Tensor | None, temperature: float
) -> None:
    library.check_float("bank_scores", queries=queries, bank=bank)
    if queries.dim() != 2 or bank.dim() != 2 or queries.shape[1] != bank.shape[1]:
        raise InputError(
            "bank_scores: shapes do not fit",
            asked="queries [batch, features] and bank [length, features]",
            seen=f"queries {list(queries.shape)}, bank {list(bank.shape)}",
        )
    numbers = {"keys": keys, "bank_keys": bank_keys} | ({} if rows is None else {"rows": rows})
    for name, tensor in numbers.items():
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
            raise InputError(f"bank_scores: {name} must be int64", seen=str(getattr(tensor, "dtype", type(tensor))))
    if rows is not None and rows.dim() != 1:
        raise InputError("bank_scores: rows has the wrong shape", asked="[entries]", seen=str(list(rows.shape)))
    kinds = keys.shape[0] if keys.dim() == 2 else 0
    library.check_shape("bank_scores", "keys", keys, (kinds, queries.shape[0]))
    entries = bank.shape[0] if rows is None else rows.shape[0]
    library.check_shape("bank_scores", "bank_keys", bank_keys, (kinds, entries))
    if not 0.0 < temperature < float("inf"):
        raise InputError("bank_scores: the temperature is out of range", asked=str(temperature), hint="above 0")
    library.check_same_device("bank_scores", queries, keys, bank, bank_keys, rows)
    library.reject_autograd("bank_scores by its bank", bank)
    if rows is not None and rows.is_cpu and rows.numel() and not torch.compiler.is_compiling():
        least, most = torch.aminmax(rows)
        if int(least) < 0 or int(most) >= bank.shape[0]:
            raise InputError(
                "bank_scores: a row that is not in the bank",
                asked=f"0 to {bank.shape[0] - 1}",
                seen=f"{int(least)} to {int(most)}",
            )


def _dtype(queries: Tensor) -> torch.dtype:
    return torch.float64 if queries.dtype == torch.float64 else torch.float32


class _Scored(NamedTuple):
    candidates: Tensor  # [n, features]
    scores: Tensor  # [batch, n], -inf where a query meets itself
    positive: Tensor  # [kinds, batch, n]


def _score(
    dtype: torch.dtype,
    queries: Tensor,
    keys: Tensor,
    bank: Tensor,
    bank_keys: Tensor,
    rows: Tensor | None,
    temperature: float,
    in_batch: bool,
) -> _Scored:
    wide = queries.to(dtype)
    candidates = (bank if rows is None else bank[rows]).to(dtype)
    if in_batch:
        candidates, bank_keys = torch.cat([wide, candidates]), torch.cat([keys, bank_keys], dim=1)
    scores = (wide @ candidates.T) / temperature
    positive = keys[:, :, None] == bank_keys[:, None, :]
    if in_batch:
        scores[:, : len(queries)].fill_diagonal_(-torch.inf)
        positive[:, :, : len(queries)] &= ~torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    return _Scored(candidates, scores, positive)


def _reduce(scored: _Scored, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, scores, positive = scored
    if not scores.shape[1]:
        nothing = positive.new_zeros(positive.shape[:2])
        return scores.new_full((len(scores),), -torch.inf).to(dtype), nothing.to(dtype), nothing.long(), nothing
    largest = scores.amax(dim=1)
    total = (scores - largest.nan_to_num(neginf=0.0)[:, None]).exp().sum(dim=1)
    best = scores.masked_fill(~positive, -torch.inf).amax(dim=2)
    counts = positive.sum(dim=2)
    certain = (best == largest) & (total.to(dtype) == 1.0) & (counts > 0)
    sums = scores.masked_fill(~positive, 0.0).sum(dim=2)
    return scores.logsumexp(dim=1).to(dtype), sums.to(dtype), counts, certain


@backends.implements("bank_scores", "reference")
def bank_scores_reference(queries: Tensor, *bank: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By torch in float64, with the matrix of scores; ``bank``: the other arguments of the op."""
    return _reduce(_score(torch.float64, queries, *bank), _dtype(queries))


@backends.implements("bank_scores", "torch")
def _bank_scores_torch(queries: Tensor, *bank: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _dtype(queries)
    with library.exact_products():
        return _reduce(_score(dtype, queries, *bank), dtype)


def _weigh(scored: _Scored, log_sum: Tensor, to_log_sum: Tensor, to_positives: Tensor, temperature: float) -> Tensor:
    candidates, scores, positive = scored
    weights = to_log_sum[:, None] * (scores - log_sum[:, None]).exp()
    for kind, slope in zip(positive, to_positives, strict=True):
        weights += kind * slope[:, None]
    return (weights.masked_fill(scores == -torch.inf, 0.0) @ candidates) / temperature


def bank_scores_gradient_reference(
    log_sum: Tensor, to_log_sum: Tensor, to_positives: Tensor, queries: Tensor, *bank: Any
) -> Tensor:
    """``Σ_c (a_i p_i(c) + Σ_x b_xi [c is a positive]) c / τ`` in float64, ``a`` and ``b`` the gradients by the sums."""
    scored = _score(torch.float64, queries, *bank)
    wide = scored.scores.logsumexp(dim=1) if scored.scores.shape[1] else log_sum.double()
    return _weigh(scored, wide, to_log_sum.double(), to_positives.double(), bank[-2]).to(queries.dtype)


def _bank_scores_gradient_torch(
    log_sum: Tensor, to_log_sum: Tensor, to_positives: Tensor, queries: Tensor, *bank: Any
) -> Tensor:
    with library.exact_products():
        scored = _score(_dtype(queries), queries, *bank)
        return _weigh(scored, log_sum, to_log_sum, to_positives, bank[-2]).to(queries.dtype)


def _view(
    queries: Tensor,
    keys: Tensor,
    bank: Tensor,
    bank_keys: Tensor,
    rows: Tensor | None,
    temperature: float,
    in_batch: bool,
) -> Any:
    # What the kernel reads, by address: the tensors must outlive it.
    return backends.extension().BankView(
        queries.data_ptr(),
        keys.data_ptr(),
        bank.data_ptr(),
        0 if rows is None or not len(rows) else rows.data_ptr(),
        bank_keys.data_ptr(),
        library.ELEMENT_TYPE[bank.dtype],
        queries.shape[0],
        queries.shape[1],
        keys.shape[0],
        bank.shape[0],
        bank_keys.shape[1],
        bank.stride(0),
        1.0 / temperature,
        in_batch,
    )


def _for_kernel(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    return queries.float(), bank.float() if bank.dtype == torch.float64 else bank


@backends.implements("bank_scores", "cpp")
def _bank_scores_cpp(
    queries: Tensor, keys: Tensor, bank: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if queries.dtype == torch.float64:
        return bank_scores_reference(queries, keys, bank, *others)
    queries, bank = _for_kernel(queries, bank)
    log_sum, positives = queries.new_empty(queries.shape[0]), queries.new_empty(keys.shape)
    counts, certain = torch.empty_like(keys), torch.empty_like(keys, dtype=torch.bool)
    backends.extension().bank_scores(
        log_sum.data_ptr(),
        positives.data_ptr(),
        counts.data_ptr(),
        certain.data_ptr(),
        _view(queries, keys, bank, *others),
        backends.threads(),
    )
    return log_sum, positives, counts, certain


def _bank_scores_gradient_cpp(
    log_sum: Tensor, to_log_sum: Tensor, to_positives: Tensor, queries: Tensor, keys: Tensor, bank: Tensor, *others: Any
) -> Tensor:
    if queries.dtype == torch.float64:
        return bank_scores_gradient_reference(log_sum, to_log_sum, to_positives, queries, keys, bank, *others)
    wide, bank = _for_kernel(queries, bank)
    gradient = torch.empty_like(wide)
    slopes = to_log_sum.contiguous(), to_positives.contiguous()
    backends.extension().bank_scores_gradient(
        gradient.data_ptr(),
        log_sum.data_ptr(),
        *(slope.data_ptr() for slope in slopes),
        _view(wide, keys, bank, *others),
        backends.threads(),
    )
    return gradient.to(queries.dtype)


@backends.implements("bank_scores", "triton")
def _bank_scores_triton(queries: Tensor, *bank: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if queries.dtype == torch.float64:
        return _bank_scores_torch(queries, *bank)
    from pyprune.triton_kernels.bank_scores import score_sums  # imports triton, only where it is used

    found = _fake(queries, *bank)
    score_sums(*found, queries, *_narrow(*bank))
    return found


def _bank_scores_gradient_triton(
    log_sum: Tensor, to_log_sum: Tensor, to_positives: Tensor, queries: Tensor, *bank: Any
) -> Tensor:
    if queries.dtype == torch.float64:
        return _bank_scores_gradient_torch(log_sum, to_log_sum, to_positives, queries, *bank)
    from pyprune.triton_kernels.bank_scores import score_gradient  # imports triton, only where it is used

    gradient = torch.empty_like(queries)
    slopes = to_log_sum.contiguous(), to_positives.contiguous()
    score_gradient(gradient, log_sum, *slopes, queries, *_narrow(*bank))
    return gradient


def _narrow(keys: Tensor, bank: Tensor, *others: Any) -> tuple[Any, ...]:
    return (keys, bank.float() if bank.dtype == torch.float64 else bank, *others)


_ARGUMENTS = (
    "Tensor queries, Tensor keys, Tensor bank, Tensor bank_keys, Tensor? rows, float temperature, bool in_batch"
)


def _fake(queries: Tensor, keys: Tensor, *bank: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _dtype(queries)
    return (
        queries.new_empty(queries.shape[0], dtype=dtype),
        queries.new_empty(keys.shape, dtype=dtype),
        torch.empty_like(keys),
        torch.empty_like(keys, dtype=torch.bool),
    )


_bank_scores = library.register(f"bank_scores({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)", fake=_fake)


# The gradient: an op for torch.compile, which has the backend of the scores.
_GRADIENTS = {
    "cpp": _bank_scores_gradient_cpp,
    "triton": _bank_scores_gradient_triton,
    "torch": _bank_scores_gradient_torch,
    "reference": bank_scores_gradient_reference,
}


def _gradient(log_sum: Tensor, to_log_sum: Tensor, to_positives: Tensor, queries: Tensor, *bank: Any) -> Tensor:
    backend = backends.choose("bank_scores", queries.device.type).backend
    return _GRADIENTS[backend](log_sum, to_log_sum, to_positives, queries, *bank)


library._LIBRARY.define(
    f"bank_scores_gradient(Tensor log_sum, Tensor to_log_sum, Tensor to_positives, {_ARGUMENTS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library._LIBRARY.impl("bank_scores_gradient", _gradient, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pyprune::bank_scores_gradient",
    lambda log_sum, to_log_sum, to_positives, queries, *bank: torch.empty_like(queries),
    lib=library._LIBRARY,
)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.temperature, ctx.in_batch = inputs
    ctx.save_for_backward(output[0], *tensors)
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx: Any, to_log_sum: Tensor, to_positives: Tensor, *_: Tensor) -> tuple[Any, ...]:
    log_sum, *tensors = ctx.saved_tensors
    library.reject_autograd("the gradient of bank_scores", to_log_sum, to_positives, *tensors)
    slopes = (log_sum, to_log_sum, to_positives)
    gradient = torch.ops.pyprune.bank_scores_gradient(*slopes, *tensors, ctx.temperature, ctx.in_batch)
    return gradient, None, None, None, None, None, None


torch.library.register_autograd("pyprune::bank_scores", _backward, setup_context=_remember, lib=library._LIBRARY)
