# SPDX-License-Identifier: Apache-2.0
"""The models that attacks ask, many texts at a time: the classifier under attack and the sentence encoder."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.attack.encodings import Encodings
from pyprune.errors import InputError, NumericsError
from pyprune.models.products import product
from pyprune.sparse import optimize
from pyprune.tasks.evaluate import longest_input

Text = str | tuple[str, ...]

# Tokens of one forward pass, padding included.
_TOKENS = 4096
# Bytes of rows kept from one group of examples to the next.
_KEPT_BYTES = 2**28


class TextModel:
    """A model on lists of texts: tokenized together, run from long to short with hardly any padding, kept by text.

    Parameters
    ----------
    model, tokenizer : transformers model and fast tokenizer
        On the CPU, an encoder that pyprune knows is used in its form for inference (``pyprune.optimize``) of a copy.
    read : callable
        Takes ``(output, attention mask)``, gives a float32 tensor with one row a text.
    max_length : int, optional
        Tokens of a text, by default what the model can take.
    stored : Encodings, optional
        Rows that earlier runs have computed, and where new ones go.

    Attributes
    ----------
    keeps : bool
        A text's row has the same bits whatever else is in the batch, so that it may be kept.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        read: Callable[[Any, Tensor], Tensor],
        max_length: int | None = None,
        stored: Encodings | None = None,
    ) -> None:
        self.model = inference_form(model)
        # A packed encoder gives a text the same bits whatever else is in the batch, so that it does not matter when it
        # was asked. Elsewhere rounding depends on the batch, and outcomes may depend on their own group alone.
        self.keeps = self.model is not model
        self.tokenizer, self.stored = tokenizer, stored
        self.max_length = longest_input(model, tokenizer, max_length)
        self._read = read
        self._device = next(self.model.parameters()).device
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._kept: dict[Text, Tensor] = {}
        self._bytes = 0

    def begin_group(self) -> None:
        """Drop what is known of texts where it would change answers, or is too much to keep."""
        if not self.keeps or self._bytes > _KEPT_BYTES:
            self._kept.clear()
            self._bytes = 0

    def __call__(self, texts: Sequence[Text]) -> list[Tensor]:
        """One row (on the CPU) for each text; a text that was asked before is not asked again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            rows = self._stored_or_computed(new)
            self._kept.update(rows)
            self._bytes += sum(row.nbytes for row in rows.values())
        return [self._kept[text] for text in texts]

    def _stored_or_computed(self, texts: list[Text]) -> dict[Text, Tensor]:
        if self.stored is None:
            return dict(zip(texts, self._rows(texts), strict=True))
        found: dict[Text, Tensor] = {}
        found.update(self.stored.get([text for text in texts if isinstance(text, str)]))
        new = [text for text in texts if text not in found]
        if new:
            computed = dict(zip(new, self._rows(new), strict=True))
            self.stored.add({text: row for text, row in computed.items() if isinstance(text, str)})
            found |= computed
        return found

    def _rows(self, texts: list[Text]) -> list[Tensor]:
        encoded = self._encode(texts)
        ids = encoded["input_ids"]
        # longest first; which texts share a batch depends on this list alone
        order = sorted(range(len(texts)), key=lambda row: (-len(ids[row]), row))
        rows: list[Tensor] = [torch.empty(0)] * len(texts)
        begin = 0
        with torch.inference_mode():
            while begin < len(order):
                width = max(len(ids[order[begin]]), 1)
                batch = order[begin : begin + max(_TOKENS // width, 1)]
                begin += len(batch)
                inputs = {
                    name: self._padded(name, [values[row] for row in batch], width) for name, values in encoded.items()
                }
                output = self.model(**inputs)
                values = self._read(output, inputs["attention_mask"]).float().cpu()
                if not bool(torch.isfinite(values).all()):
                    raise NumericsError(
                        "the model's outputs are not finite",
                        seen=f"NaN or infinity in a batch of {len(batch)} texts",
                        hint="check the weights; load fp16 weights in float32 on a CPU",
                    )
                for row, value in zip(batch, values.clone(), strict=True):
                    rows[row] = value
        return rows

    def _encode(self, texts: list[Text]) -> dict[str, list[list[int]]]:
        firsts: list[str] = [text if isinstance(text, str) else text[0] for text in texts]
        pairs = None if isinstance(texts[0], str) else [text[1] for text in texts]
        output = self.tokenizer(
            firsts, pairs, truncation=True, max_length=self.max_length, padding=False, return_attention_mask=True
        )
        return {name: output[name] for name in output if name in self._accepted}

    def _padded(self, name: str, rows: list[list[int]], width: int) -> Tensor:
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}.get(
            name, 0
        )
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=self._device)


def logits(output: Any, mask: Tensor) -> Tensor:
    """What a classifier is read by."""
    scores: Tensor = output.logits
    return scores


def mean_of_tokens(output: Any, mask: Tensor) -> Tensor:
    """What a sentence encoder is read by: the mean of its last states over real tokens, which come first.

    Sums are of real tokens alone: with padding their rounding would depend on the longest text of the batch.
    """
    states: Tensor = output.last_hidden_state
    counts = mask.sum(dim=1)
    means = states.new_zeros(states.shape[0], states.shape[2])
    for count in sorted(set(counts.tolist())):
        rows = counts == count
        means[rows] = states[rows, :count].mean(dim=1) if count else 0.0
    return means


def inference_form(model: Any) -> Any:
    """The model as ``pyprune.optimize`` makes it, where it does; else the model in evaluation mode.

    What is behind the blocks, such as a classifier, then rounds a text in the same way whatever else is in the batch,
    as the blocks do.
    """
    parameter = next(model.parameters())
    if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
        with contextlib.suppress(InputError):
            packed = optimize(copy.deepcopy(model))
            for module in packed.modules():
                for name, child in list(module.named_children()):
                    if type(child) is nn.Linear:
                        setattr(module, name, _RowLinear(child))
            return packed
    return model.eval()


class _RowLinear(nn.Module):
    """A linear whose every row has the bits that it would have alone; a library's product depends on their number."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.across = nn.Parameter(linear.weight.detach().T.contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.across, self.bias)
