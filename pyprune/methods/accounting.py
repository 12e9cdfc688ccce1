# SPDX-License-Identifier: Apache-2.0
"""Sparsity by every denominator in use, counted from masks; versions, time and memory for the report."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.models import Adapter


def count(
    model: nn.Module, adapter: Adapter, removed: int, units: Mapping[str, int], tokens: float
) -> dict[str, dict[str, int]]:
    """Removed and total, by denominator.

    Parameters
    ----------
    model, adapter
        Only shapes are read.
    removed : int
        Weights, counted from the masks.
    units : mapping of str to int
        Heads and neurons: the sum of :func:`units` over blocks.
    tokens : float
        Mean tokens of a sentence, for the attention's own products in ``encoder_macs``.

    Returns
    -------
    dict
        ``linear_weights``: weights of the pruned linears. ``encoder_parameters``: all parameters of the blocks, with
        biases and norms. ``encoder_without_norms``: with biases, without norms. ("Encoder": the blocks, of decoders
        too.) ``encoder_and_embeddings``: everything below the pooler and heads. ``all_parameters``.
        ``encoder_macs``: multiply-accumulates of the blocks per token, zeros skipped, with attention's own.
        ``heads_and_neurons``: heads and feed-forward neurons from which nothing is read any more.
    """
    blocks = adapter.blocks(model)
    weights = sum(linear.weight.numel() for block in blocks for linear in adapter.linears(block).values())
    encoder = sum(p.numel() for block in blocks for p in block.parameters())
    norms = sum(
        p.numel()
        for block in blocks
        for m in block.modules()
        if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))
        for p in m.parameters()
    )
    embeddings = sum(p.numel() for module in adapter.embedding_modules(model) for p in module.parameters())
    # Keys a query meets; the attention output reads as many features as queries and contexts have.
    keys = (tokens + 1) / 2 if adapter.causal else tokens
    width = adapter.linears(blocks[0])[adapter.groups[1][0]].in_features
    totals = {
        "linear_weights": weights,
        "encoder_parameters": encoder,
        "encoder_without_norms": encoder - norms,
        "encoder_and_embeddings": encoder + embeddings,
        "all_parameters": sum(p.numel() for p in model.parameters()),
        "encoder_macs": weights + round(len(blocks) * 2 * keys * width),
    }
    counts = {name: {"removed": removed, "total": total} for name, total in totals.items()}
    counts["heads_and_neurons"] = dict(units)
    return counts


def units(model: nn.Module, adapter: Adapter, masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Heads and feed-forward neurons of one block: how many nothing reads any more, and how many there are.

    Parameters
    ----------
    model, adapter
    masks : mapping of str to Tensor of bool
        Of the block, by linear name relative to it.
    """
    config: Any = model.config
    heads = int(config.num_attention_heads)
    neurons = masks[adapter.groups[3][0]].any(dim=0)
    # Head i writes columns [i·d, (i+1)·d) of the attention output's input.
    alive = masks[adapter.groups[1][0]].any(dim=0).reshape(heads, -1).any(dim=1)
    return {"removed": int((~neurons).sum()) + int((~alive).sum()), "total": neurons.numel() + heads}


def versions() -> dict[str, str]:
    """Of everything whose version can change a result."""
    import transformers

    from pyprune import __version__

    return {
        "pyprune": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def resident_bytes() -> int | None:
    """Resident memory of this process now; None where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    peak = _status("VmHWM")
    if peak is None and sys.platform == "darwin":
        import resource

        # On Linux this would count what the process that started this one held.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak


def _status(key: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(f"{key}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


@contextmanager
def timed(seconds: MutableMapping[str, float], stage: str) -> Iterator[None]:
    """Add the time spent within to a stage, that of the device included."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[stage] += time.perf_counter() - begin
