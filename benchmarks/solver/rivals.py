# SPDX-License-Identifier: Apache-2.0
"""The solvers pyprune is compared with, in plain torch, written here from the published algorithms.

For whoever has no checkout of the public programs (`public.py` runs those). All take a weight `[out, in]` in float32,
a gram `[in, in]` and a pattern, add the same ridge and compute in float32, as the public programs do:

- magnitude; Wanda (arXiv 2306.11695), whose rows compete alone;
- SparseGPT (arXiv 2301.00774): blocks of 128 columns, mask by w² / u² over a block;
- exact greedy OBS by rank-1 updates (arXiv 2208.11580, algorithm 1; AKR, arXiv 2310.13191), a copy of the inverse for
  each of a batch of rows;
- ADMM in the manner of ALPS (arXiv 2406.07831): unit diagonal, one eigendecomposition, a penalty that grows with the
  changes of the support, conjugate gradients on the support found;
- row-wise least squares on a given mask by batched Cholesky, of full-size systems or of gathered supports.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import NM
from pyprune.patterns import Pattern, Unstructured, kept_count

DAMPING = 1e-2  # of the mean diagonal, for all
BATCH = 32  # rows that share one batched call


def damped(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """Hessian in float32 with the ridge on its diagonal."""
    return (
        gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    ).float()


def keep_largest(scores: Tensor, pattern: Pattern) -> Tensor:
    """Mask of the largest scores, `[out, in]` bool, by torch's `topk`."""
    rows, columns = scores.shape
    if isinstance(pattern, NM):
        groups, count = scores.reshape(-1, pattern.of), pattern.keep
    elif isinstance(pattern, Unstructured) and pattern.scope == "row":
        groups, count = scores, kept_count(columns, pattern.sparsity)
    else:
        groups, count = scores.reshape(1, -1), kept_count(rows * columns, pattern.sparsity)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(1, groups.topk(count, dim=1, sorted=False).indices, True).reshape(rows, columns)


def magnitude(weight: Tensor, gram: Tensor, pattern: Pattern) -> Tensor:
    """Keep the largest weights."""
    return weight * keep_largest(weight.abs(), pattern)


def wanda(weight: Tensor, gram: Tensor, pattern: Pattern) -> Tensor:
    """Keep the largest weight times input norm; unstructured ones in every row alike, as published."""
    alone = pattern if isinstance(pattern, NM) else Unstructured(pattern.sparsity, scope="row")
    return weight * keep_largest(weight.abs() * gram.diagonal().float().sqrt(), alone)


def sparsegpt(weight: Tensor, gram: Tensor, pattern: Pattern, *, block: int = 128) -> Tensor:
    """Columns from left to right, each column's error spread over those to its right.

    Parameters
    ----------
    block : int
        Columns whose mask is chosen together where the pattern is unstructured.
    """
    w = weight.clone()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped(gram))), upper=True)
    columns = w.shape[1]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part = w[:, start:end].clone()
        factor = upper[start:end, start:end]
        errors = torch.zeros_like(part)
        keep = torch.ones_like(part, dtype=torch.bool)
        if not isinstance(pattern, NM):
            keep = keep_largest(part**2 / factor.diagonal() ** 2, Unstructured(pattern.sparsity, scope="layer"))
        for i in range(end - start):
            if isinstance(pattern, NM) and i % pattern.of == 0:
                group = slice(i, i + pattern.of)
                keep[:, group] = keep_largest(part[:, group] ** 2 / factor.diagonal()[group] ** 2, pattern)
            new = part[:, i].masked_fill(~keep[:, i], 0.0)
            error = (part[:, i] - new) / factor[i, i]
            part[:, i] = new
            part[:, i + 1 :] -= error.unsqueeze(1) * factor[i, i + 1 :]
            errors[:, i] = error
        w[:, start:end] = part
        w[:, end:] -= errors @ upper[start:end, end:]
    return w


def rank1_obs(
    weight: Tensor, gram: Tensor, pattern: Unstructured, *, batch: int = BATCH, in_place: bool = True
) -> Tensor:
    """Greedy OBS row by row, `batch` rows at a time, one explicit inverse per row; every row keeps the same number.

    A batched rank-1 update follows each removal, which stops at the wanted count.

    Parameters
    ----------
    batch : int
        Rows at a time; memory is batch * columns^2 floats.
    in_place : bool
        Subtract the outer products while they are taken, or take them first and then subtract, as public code does.
    """
    rows, columns = weight.shape
    steps = columns - kept_count(columns, pattern.sparsity)
    inverse = torch.linalg.inv(damped(gram))
    result = weight.clone()
    for first in range(0, rows, batch):
        w = result[first : first + batch]
        inverses = inverse.repeat(len(w), 1, 1)
        alive = torch.ones_like(w, dtype=torch.bool)
        every = torch.arange(len(w), device=w.device)
        for _ in range(steps):
            diagonal = inverses.diagonal(dim1=1, dim2=2)
            scores = torch.where(alive, w * w / diagonal, torch.inf)
            pick = scores.argmin(dim=1)
            row = inverses[every, pick]
            pivot = row[every, pick].unsqueeze(1)
            w -= row * (w[every, pick].unsqueeze(1) / pivot)
            scaled = row / pivot.sqrt()
            if in_place:
                inverses.baddbmm_(scaled.unsqueeze(2), scaled.unsqueeze(1), alpha=-1.0)
            else:
                inverses -= scaled.unsqueeze(2) @ scaled.unsqueeze(1)
            # A removed column must stay out: keep its diagonal harmless and its weight at zero.
            alive[every, pick] = False
            inverses[every, pick, pick] = 1.0
            w.masked_fill_(~alive, 0.0)
    return result


def batched_cholesky(
    gram: Tensor,
    rhs: Tensor,
    mask: Tensor,
    *,
    damping: float = DAMPING,
    batch: int = BATCH,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Solve (G_SS + ridge) w_S = c_S for every row, `batch` full-size systems at a time.

    The usual torch way is the mask trick: rows and columns outside a row's support are zeroed, ones put on their
    diagonal, and all full-size systems are factorised in batches.

    Parameters
    ----------
    gram : Tensor, shape (columns, columns)
    rhs, mask : Tensor, shape (rows, columns)
    """
    ridge = damping * gram.diagonal().mean()
    system = (gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).to(dtype)
    result = torch.empty_like(rhs, dtype=dtype)
    for first in range(0, len(rhs), batch):
        keep = mask[first : first + batch]
        both = keep.unsqueeze(2) & keep.unsqueeze(1)
        systems = torch.where(both, system, torch.zeros((), dtype=dtype))
        systems.diagonal(dim1=1, dim2=2).masked_fill_(~keep, 1.0)
        target = rhs[first : first + batch].to(dtype).masked_fill(~keep, 0.0)
        factor = torch.linalg.cholesky(systems)
        result[first : first + batch] = torch.cholesky_solve(target.unsqueeze(2), factor).squeeze(2)
    return result


def gathered_cholesky(
    gram: Tensor,
    rhs: Tensor,
    mask: Tensor,
    *,
    damping: float = DAMPING,
    batch: int = BATCH,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The same on systems no larger than they must be: each row's support gathered, `[batch, s, s]` at a time.

    ``s`` is the widest support of the batch; narrower ones are filled up with ones on the diagonal.
    """
    ridge = damping * gram.diagonal().mean()
    system = (gram + ridge * torch.eye(len(gram), dtype=gram.dtype)).to(dtype)
    result = torch.zeros(rhs.shape, dtype=dtype)
    for first in range(0, len(rhs), batch):
        keep = mask[first : first + batch]
        count = keep.sum(dim=1, keepdim=True)
        widest = int(count.max())
        support = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :widest]
        own = torch.arange(widest) < count
        systems = system[support.unsqueeze(2), support.unsqueeze(1)]
        if bool((count < widest).any()):
            systems.masked_fill_(~(own.unsqueeze(2) & own.unsqueeze(1)), 0.0)
            systems.diagonal(dim1=1, dim2=2).masked_fill_(~own, 1.0)
        target = rhs[first : first + batch].to(dtype).gather(1, support).masked_fill(~own, 0.0)
        factor = torch.linalg.cholesky(systems)
        found = torch.cholesky_solve(target.unsqueeze(2), factor).squeeze(2)
        result[first : first + batch].scatter_(1, support, found)
    return result


def sparsegpt_refitted(weight: Tensor, gram: Tensor, pattern: Pattern) -> Tensor:
    """SparseGPT's mask, its weights solved exactly for it, the ridge centred on the dense weight."""
    mask = sparsegpt(weight, gram, pattern) != 0
    return batched_cholesky(gram, weight @ damped(gram), mask)


def admm(weight: Tensor, gram: Tensor, pattern: Pattern, *, penalty: float = 0.1, iterations: int = 300) -> Tensor:
    """ALPS: alternate a ridge regression and a projection onto the pattern, until the support stands still; then refit.

    With the features scaled to a unit diagonal of the damped gram ``H``, ``W₀`` the dense weight and ``V`` the dual,

        B = (W₀H − V + ρD)(H + ρI)⁻¹,   D = keep the largest of (B + V/ρ)²,   V += ρ(B − D).

    Every third iteration the entries of the support that changed since the last look, in units of the kept ones,
    decide on ρ: above 0.1 it grows by 1.3, above 0.005 by 1.2, with any change by 1.1, and none ends the loop. Where
    the first look already finds almost none, ρ is too large: it is divided by 5, and the loop starts again.

    Parameters
    ----------
    penalty : float
        First ρ.
    iterations : int
        At most.
    """
    h = damped(gram)
    norm = h.diagonal().sqrt()
    h = h / norm / norm.unsqueeze(1)
    dense = weight * norm
    target = dense @ h
    eigenvalues, vectors = torch.linalg.eigh(h.double())

    def inverse(rho: float) -> Tensor:
        shared: Tensor = (vectors / (eigenvalues + rho)) @ vectors.T
        return shared.float()

    before = keep_largest(dense.abs(), pattern)
    count = int(before.sum())
    sparse, dual, rho = dense * before, torch.zeros_like(dense), penalty
    solve, begun = inverse(rho), False
    keep = before
    for step in range(1, iterations + 1):
        found = (target - dual + rho * sparse) @ solve
        raised = found + dual / rho
        keep = keep_largest(raised.abs(), pattern)
        sparse = raised * keep
        dual += rho * (found - sparse)
        if step % 3:
            continue
        changed = int((keep ^ before).sum())
        before = keep
        if changed > 0.005 * count:
            begun = True
            rho *= 1.3 if changed > 0.1 * count else 1.2
        elif begun:
            if changed == 0:
                break
            rho *= 1.1
        else:
            rho /= 5.0
            before = keep_largest(dense.abs(), pattern)
            sparse, dual = dense * before, torch.zeros_like(dense)
        if step > 30 and changed < 0.0003 * count:
            break
        solve = inverse(rho)
    return conjugate_gradients(h, target, keep, sparse) / norm


def conjugate_gradients(gram: Tensor, rhs: Tensor, mask: Tensor, start: Tensor, *, iterations: int = 10) -> Tensor:
    """Improve ``start`` towards ``(w·gram)_S = rhs_S`` on each row's support, all rows in one product.

    Parameters
    ----------
    gram : Tensor, shape (columns, columns)
        Of unit diagonal, so that no other preconditioner is needed.
    rhs, mask, start : Tensor, shape (rows, columns)
    """
    w = start * mask
    residual = (rhs - w @ gram) * mask
    direction = residual.clone()
    energy = residual.square().sum(dim=1, keepdim=True)
    tiny = torch.finfo(w.dtype).tiny
    for _ in range(iterations):
        image = (direction @ gram) * mask
        length = energy / (direction * image).sum(dim=1, keepdim=True).clamp_min(tiny)
        w += length * direction
        residual -= length * image
        new = residual.square().sum(dim=1, keepdim=True)
        direction = residual + new / energy.clamp_min(tiny) * direction
        energy = new
    return w


SOLVERS = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "sparsegpt+ls": sparsegpt_refitted,
    "obs": rank1_obs,
    "admm": admm,
}
ROW_ONLY = {"wanda", "obs"}  # their unstructured masks keep the same number in every row


def refuses(name: str, pattern: Pattern) -> str | None:
    """Why a solver here cannot do a pattern, or None."""
    return "only unstructured" if name == "obs" and isinstance(pattern, NM) else None
