# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a causal language model on text, window by window."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError, NumericsError
from pyprune.tasks.evaluate import Progress, judging, longest_input
from pyprune.tasks.loading import Examples

SEPARATOR = "\n\n"  # between texts, as is usual for WikiText
DEFAULT_LENGTH = 2048
_MOST_TOKENS = 2048  # of one forward pass; their logits are 260 MB at 32,000 words


@dataclass(frozen=True)
class Perplexity:
    """Outcome of one evaluation.

    Attributes
    ----------
    metric, value : str, float
        ``"perplexity"``: ``exp`` of ``nll``.
    nll : float
        Mean negative log-likelihood of a token in nats; sums in float64.
    tokens, predicted, windows : int
        Tokens of the text, those that were predicted (the first of a text has nothing before it; windows without
        overlap each have such a first one), and windows.
    max_length, stride : int
        Tokens of a window, and from the start of one to that of the next.
    seconds : float
    source, sha256 : str
        Data that was evaluated.
    """

    metric: str
    value: float
    nll: float
    tokens: int
    predicted: int
    windows: int
    max_length: int
    stride: int
    seconds: float
    source: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record."""
        return asdict(self)

    def describe(self) -> str:
        """``"perplexity 12.31 (4,095 tokens predicted in 1 window of 4096)"``."""
        windows = f"{self.windows} window{'s' if self.windows > 1 else ''} of {self.max_length}"
        return f"perplexity {self.value:.4g} ({self.predicted:,} tokens predicted in {windows})"


def is_language_model(model: Any) -> bool:
    """Whether perplexity is what the model is judged by."""
    return type(model).__name__.endswith("ForCausalLM")


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """All texts as one sequence, empty lines between them, special tokens only where the tokenizer puts them."""
    return [int(token) for token in tokenizer(SEPARATOR.join(texts), verbose=False)["input_ids"]]


def perplexity(
    model: Any,
    examples: Examples,
    *,
    tokenizer: Any,
    max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity on texts joined to one sequence, every token predicted at most once.

    Parameters
    ----------
    model : transformers model for causal language modelling
        Used on the device and in the precision it is in.
    examples : Examples
        Labels are not looked at.
    tokenizer : transformers tokenizer
    max_length : int, optional
        Tokens of a window. Default 2048, or what the model can take if that is less.
    stride : int, optional
        From window to window; below ``max_length`` the overlap is context only. Default ``max_length``.
    batch_size : int
        Windows of a forward pass at most; fewer where they are long.
    progress : optional
        Receives ``start(total, text)``, ``advance(text)``, ``finish()``.

    Raises
    ------
    InputError
        Another kind of model, fewer than two tokens, or a window or stride that does not fit.
    NumericsError
        The model's outputs are not finite.
    """
    if not is_language_model(model):
        raise InputError("perplexity is for causal language models", seen=f"a {type(model).__name__}")
    limit = longest_input(model, tokenizer, None)
    length = min(DEFAULT_LENGTH, limit) if max_length is None else longest_input(model, tokenizer, max_length)
    stride = length if stride is None else stride
    if length < 2 or not 1 <= stride <= length:
        raise InputError(
            "a window needs two tokens, and a stride of 1 up to its length", seen=f"{length} tokens, stride {stride}"
        )
    begin = time.perf_counter()
    texts = examples.texts if examples.pairs is None else [text for pair in examples.inputs for text in pair]
    ids = torch.tensor(token_ids(tokenizer, list(texts)))
    if len(ids) < 2:
        raise InputError(f"{examples.source} is too short to predict anything in", seen=f"{len(ids)} tokens")
    windows = _windows(len(ids), length, stride)
    total = _negative_log_likelihood(model, ids, windows, min(batch_size, max(1, _MOST_TOKENS // length)), progress)
    predicted = sum(end - first for _, first, end in windows)
    nll = total / predicted
    return Perplexity(
        metric="perplexity",
        # Beyond any vocabulary: a model that is sure of what is wrong.
        value=math.exp(min(nll, 700.0)),
        nll=nll,
        tokens=len(ids),
        predicted=predicted,
        windows=len(windows),
        max_length=length,
        stride=stride,
        seconds=time.perf_counter() - begin,
        source=examples.source,
        sha256=examples.sha256,
    )


def _windows(count: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """First token, first predicted token and end of each window; one with nothing to predict is left out."""
    windows = []
    done = 0
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        first = max(begin + 1, done)
        if first < end:
            windows.append((begin, first, end))
        done = end
        if end == count:
            break
    return windows


def _negative_log_likelihood(
    model: Any, ids: Tensor, windows: list[tuple[int, int, int]], rows: int, progress: Progress | None
) -> float:
    device = next(model.parameters()).device
    total = 0.0
    with judging(model, len(windows), progress) as advance:
        for chosen in _batches(windows, rows):
            batch = torch.stack([ids[begin:end] for begin, _, end in chosen]).to(device)
            logits = model(input_ids=batch, use_cache=False).logits
            for row, (begin, first, end) in enumerate(chosen):
                # The logits at a token predict the next.
                scores, wanted = logits[row, first - begin - 1 : end - begin - 1], batch[row, first - begin :]
                losses = nn.functional.cross_entropy(scores.float(), wanted, reduction="none")
                total += float(losses.double().sum())
                advance()
    if not math.isfinite(total):
        raise NumericsError(
            "the model's outputs are not finite", hint="check the weights; load fp16 weights in float32 on a CPU"
        )
    return total


def _batches(windows: list[tuple[int, int, int]], rows: int) -> list[list[tuple[int, int, int]]]:
    """Windows of one length together; only the last can be shorter."""
    groups: list[list[tuple[int, int, int]]] = []
    for window in windows:
        last = groups[-1] if groups else None
        if last is None or len(last) == rows or window[2] - window[0] != last[0][2] - last[0][0]:
            groups.append([window])
        else:
            last.append(window)
    return groups
