# SPDX-License-Identifier: Apache-2.0
"""Halves of blocks as residual branches ``LN(x + Sub(x))``: their units, gates on them, two streams through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.adapters import Adapter
from pyprune.models.products import fast_products, gate
from pyprune.models.replay import BlockCall, hidden_of, run_block, substituted
from pyprune.models.streams import Batch, MemoryStore, first_calls

KINDS = ("heads", "neurons")


@dataclass(frozen=True)
class SubLayer:
    """One residual branch.

    Attributes
    ----------
    index : int
        From the embeddings up: twice the block's number, and one more for its feed-forward half.
    name : str
        Of the linear that writes back to the hidden states.
    reads : tuple of nn.Linear
        Those that read the branch's input.
    writes : nn.Linear
        Its inputs are the channels of heads, or the neurons.
    width : int
        Inputs of ``writes`` that make a unit: a head's channels, or 1.
    """

    index: int
    name: str
    reads: tuple[nn.Linear, ...]
    writes: nn.Linear
    width: int

    @property
    def block(self) -> int:
        """Number of its block."""
        return self.index // 2

    @property
    def half(self) -> int:
        """0 for attention, 1 for feed-forward."""
        return self.index % 2

    @property
    def kind(self) -> str:
        """``"heads"`` or ``"neurons"``."""
        return KINDS[self.half]

    @property
    def units(self) -> int:
        """Heads, or neurons."""
        return self.writes.in_features // self.width

    def inputs(self, units: Tensor) -> Tensor:
        """A mask of units ``[units]`` as one of the inputs of ``writes`` ``[in]``."""
        return units.to(self.writes.weight.device).repeat_interleave(self.width)

    @torch.no_grad()
    def remove(self, kept: Tensor) -> None:
        """Zero everything that belongs to units where ``kept`` ``[units]`` is False: rows, their biases, columns."""
        gone = ~self.inputs(kept)
        self.writes.weight[:, gone] = 0.0
        for linear in self.reads:
            linear.weight[gone] = 0.0
            if linear.bias is not None:
                linear.bias[gone] = 0.0


def sub_layers(model: nn.Module, adapter: Adapter) -> list[SubLayer]:
    """All residual branches of an encoder, bottom up.

    Raises
    ------
    InputError
        A family with norms before the halves of a block, or whose heads are not all alike.
    """
    if not adapter.norms:
        raise InputError(
            f"units of {adapter.family} models cannot be pruned",
            hint="an encoder with norms behind its residual sums: BERT, RoBERTa, DistilBERT, ...",
        )
    heads = int(model.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    found = []
    for number, block in enumerate(adapter.blocks(model)):
        linears, prefix = adapter.linears(block), adapter.block_name(model, number)
        for half in (0, 1):
            reads, (writes,) = adapter.groups[2 * half], adapter.groups[2 * half + 1]
            width = 1 if half else linears[writes].in_features // heads
            parts = tuple(linears[name] for name in reads)
            found.append(SubLayer(2 * number + half, f"{prefix}.{writes}", parts, linears[writes], width))
    return found


@contextmanager
def gated(
    parts: Sequence[SubLayer],
    see: Callable[[SubLayer, Tensor], None] | None = None,
    *,
    first_only: Sequence[SubLayer] = (),
) -> Iterator[dict[str, Tensor]]:
    """Put gates of one in front of the linears that write back, and record gradients within.

    Parameters
    ----------
    parts : sequence of SubLayer
    see : callable, optional
        Called with every sub-layer and the input of its ``writes`` ``[batch, tokens, in]``.
    first_only : sequence of SubLayer
        Those of ``parts`` of whose outputs the loss sees the first token's only.

    Yields
    ------
    dict of str to Tensor
        By the sub-layers' names, float32 ``[in]``; what ``torch.autograd.grad`` is asked for.
    """
    gates = {
        part.name: torch.ones(part.writes.in_features, device=part.writes.weight.device, requires_grad=True)
        for part in parts
    }

    def before(part: SubLayer) -> Callable[..., tuple[Any, ...]]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if see is not None:
                see(part, args[0].detach())
            return (gate(args[0], gates[part.name], first=part in first_only), *args[1:])

        return hook

    with ExitStack() as stack:
        for part in parts:
            stack.callback(part.writes.register_forward_pre_hook(before(part)).remove)
        with torch.enable_grad():
            yield gates


class ResidualStreams:
    """Hidden states of a teacher and of the model being pruned, at the same block, over the same batches.

    What the attention half of a block gives is kept, and the teacher moves on while its second half is asked for, so
    that both halves and :meth:`advance` together run each block little more than once.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, float32 (:func:`pyprune.models.replay.quiet`).
    adapter : Adapter
    batches : sequence of mappings
        ``input_ids``, ``attention_mask`` and what else the model takes, on the model's device.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, batches: Sequence[Batch]) -> None:
        self._model, self._adapter, self._batches = model, adapter, batches
        self._blocks = adapter.blocks(model)
        self.keep = [batch["attention_mask"].bool() for batch in batches]
        self._calls: list[BlockCall] = []
        config: Any = model.config
        shapes = [(*mask.shape, int(config.hidden_size)) for mask in self.keep]
        device = batches[0]["input_ids"].device
        self._teacher, self._student = MemoryStore(shapes, device), MemoryStore(shapes, device)
        # Outputs of attention in the block where the streams are, as far as they are known there.
        self._attended = {"teacher": MemoryStore(shapes, device), "student": MemoryStore(shapes, device)}
        self._known: set[str] = set()
        self._attention_arity: int | None = None
        self._ahead = False  # the teacher is through the block already
        for index, (hidden, call) in enumerate(first_calls(model, self._blocks[0], batches)):
            self._calls.append(call)
            self._teacher.put(index, hidden)
            self._student.put(index, hidden)
        output = self._calls[0].run(self._blocks[0], self._teacher.get(0))
        self._arity = len(output) if isinstance(output, (tuple, list)) else None

    def half(self, teacher: nn.Module, student: nn.Module, half: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What fits one half of the student's block to the teacher's, batch by batch.

        Parameters
        ----------
        teacher, student : nn.Module
            The blocks of both.
        half : int
            0 for attention, 1 for feed-forward.

        Yields
        ------
        inputs : Tensor, shape (batch, tokens, in)
            What the student's writing linear reads.
        targets : Tensor, shape (batch, tokens, hidden)
            What it would have to write, bias included, for the student's norm to read what the teacher's reads:
            ``x_T + Sub_T(x_T) − x_S``. The drift of the residual is in it.
        keep : Tensor of bool, shape (batch, tokens)
        """
        reads, (writes,) = self._adapter.groups[2 * half][0], self._adapter.groups[2 * half + 1]
        attention = self._adapter.attention
        with fast_products([*self._linears(teacher), *self._linears(student)]):
            for batch, (call, keep) in enumerate(zip(self._calls, self.keep, strict=True)):
                wanted = self._target(teacher, call, batch, half)
                hidden = self._student.get(batch)
                outputs = (attention,) if half else ()
                seen = run_block(student, call, hidden, inputs=(reads, writes), outputs=outputs)
                if half:
                    self._keep_attention("student", batch, seen.outputs[attention], hidden)
                yield seen.inputs[writes], wanted - seen.inputs[reads], keep
        self._known.add("student" if half else "teacher")
        self._ahead = half == 1

    def _target(self, teacher: nn.Module, call: BlockCall, batch: int, half: int) -> Tensor:
        """What the teacher's norm reads; behind the second half the teacher moves on."""
        norm, attention, hidden = self._adapter.norms[half], self._adapter.attention, self._teacher.get(batch)
        if half == 0:
            seen = run_block(teacher, call, hidden, inputs=(norm,), outputs=(attention,))
            self._keep_attention("teacher", batch, seen.outputs[attention], hidden)
            return seen.inputs[norm]
        done = self._attention_done("teacher", batch)
        seen = run_block(teacher, call, hidden, inputs=(norm,), substitute=done, stop=False)
        assert seen.hidden is not None
        self._teacher.put(batch, seen.hidden)
        return seen.inputs[norm]

    def _keep_attention(self, stream: str, batch: int, output: object, like: Tensor) -> None:
        self._attention_arity = len(output) if isinstance(output, (tuple, list)) else None
        self._attended[stream].put(batch, hidden_of(output, like))

    def _attention_done(self, stream: str, batch: int) -> tuple[str, Tensor, int | None] | None:
        if stream not in self._known:
            return None
        return self._adapter.attention, self._attended[stream].get(batch), self._attention_arity

    def advance(self, teacher: nn.Module, student: nn.Module) -> None:
        """Move both through their finished blocks; what :meth:`half` gave of them must hold still."""
        streams = [("student", self._student, student)]
        if not self._ahead:
            streams.append(("teacher", self._teacher, teacher))
        with fast_products([*self._linears(teacher), *self._linears(student)]):
            for batch, call in enumerate(self._calls):
                for name, store, block in streams:
                    done = self._attention_done(name, batch)
                    hidden = run_block(block, call, store.get(batch), substitute=done, stop=False).hidden
                    assert hidden is not None
                    store.put(batch, hidden)
        self._known, self._ahead = set(), False

    def outputs(self, block: int, *, first_only: bool = False) -> Iterator[Any]:
        """The model's outputs batch by batch, of the student's hidden states at ``block``; blocks below are not run.

        Within :func:`gated`, gradients of gates in ``block`` and above can be taken from them, but none of weights.

        Parameters
        ----------
        block : int
        first_only : bool
            What is behind the blocks reads the first token only.
        """
        linears = [linear for above in self._blocks[block:] for linear in self._linears(above)]
        write, read = self._of_first_token() if first_only else ((), ())
        with fast_products(linears, write_first=write, read_first=read):
            for index, batch in enumerate(self._batches):
                hidden = self._student.get(index)
                with ExitStack() as stack:
                    for below in self._blocks[:block]:
                        stack.enter_context(substituted(below, hidden, self._arity))
                    output = self._model(**batch)
                yield output

    def _linears(self, block: nn.Module) -> list[nn.Linear]:
        return list(self._adapter.linears(block).values())

    def _of_first_token(self) -> tuple[list[nn.Linear], list[nn.Linear]]:
        """Of the last block: what writes for the first token only, and what gets gradients from it only."""
        linears, groups = self._adapter.linears(self._blocks[-1]), self._adapter.groups
        query = groups[0][0]  # keys and values are read for all tokens
        return [linears[groups[3][0]]], [linears[name] for name in (query, *groups[1], *groups[2])]
