# SPDX-License-Identifier: Apache-2.0
"""Dense and pruned hidden states of all calibration batches, in memory or on disk, moved block by block."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.adapters import Adapter
from pyprune.models.replay import BlockCall, Shared, capture_call, hidden_of, run_block

Batch = Mapping[str, Tensor]

_ALIGN = 64  # floats; vector loads and the order of sums in a kernel can depend on alignment


class Store(Protocol):
    """One float32 tensor of fixed shape per batch."""

    def get(self, index: int) -> Tensor: ...
    def put(self, index: int, value: Tensor) -> None: ...
    def close(self) -> None: ...


class MemoryStore:
    """Keeps the tensors in one block: no fragments between batches, and every tensor aligned alike in every run."""

    def __init__(self, shapes: Sequence[Sequence[int]], device: torch.device) -> None:
        sizes = [torch.Size(shape).numel() for shape in shapes]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // _ALIGN) * _ALIGN)
        block = torch.empty(starts[-1], dtype=torch.float32, device=device)
        self._tensors = [
            block[start : start + size].view(tuple(shape))
            for start, size, shape in zip(starts[:-1], sizes, shapes, strict=True)
        ]

    def get(self, index: int) -> Tensor:
        """Return a view, which the next ``put`` at ``index`` overwrites."""
        return self._tensors[index]

    def put(self, index: int, value: Tensor) -> None:
        tensor = self._tensors[index]
        tensor.copy_(value.detach().reshape(tensor.shape))

    def close(self) -> None:
        self._tensors = []


class DiskStore:
    """Keeps the tensors in one unnamed file: resident memory is one batch, and nothing is left behind by a crash.

    The space is reserved at once, so that a full disk is met before the work and not in its middle.
    """

    def __init__(self, folder: Path, shapes: Sequence[Sequence[int]], device: torch.device) -> None:
        self._shapes = [tuple(shape) for shape in shapes]
        sizes = [4 * torch.Size(shape).numel() for shape in self._shapes]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._device = device
        total = sum(sizes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: Any = tempfile.TemporaryFile(prefix="pyprune-", dir=folder)  # noqa: SIM115
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, max(total, 1))
            else:
                self._file.truncate(total)
        except OSError as error:
            raise _spill_error(error, folder, total) from error

    def get(self, index: int) -> Tensor:
        value = torch.empty(self._shapes[index], dtype=torch.float32)
        array: Any = value.numpy()
        view = memoryview(array).cast("B")
        self._file.seek(self._starts[index])
        if self._file.readinto(view) != len(view):
            raise InputError("a spilled activation could not be read back", seen="the file is shorter than written")
        return value.to(self._device)

    def put(self, index: int, value: Tensor) -> None:
        self._file.seek(self._starts[index])
        array: Any = value.detach().cpu().contiguous().numpy()
        self._file.write(memoryview(array).cast("B"))

    def close(self) -> None:
        self._file.close()


def _spill_error(error: OSError, folder: Path, needed: int) -> InputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return InputError(
        f"no room to spill activations in {folder}" if full else f"cannot write to the spill folder {folder}",
        asked=f"{needed / 2**20:.0f} MiB",
        seen=error.strerror or str(error),
        hint="a folder on a larger disk, fewer calibration samples, or a smaller max_length",
    )


def first_calls(model: nn.Module, block: nn.Module, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, BlockCall]]:
    """What the first block of a model is called with, batch by batch: hidden states, and the rest of the call."""
    shared = Shared()
    for batch in batches:
        hidden, call = capture_call(model, block, batch)
        yield hidden, shared.call(call)


class DualStream:
    """Hidden states of a dense and a pruned model over the same batches.

    The two start alike, at the embeddings. For each block, ask for the groups in order (:meth:`group`), then
    :meth:`advance`. Every pass stops as soon as it has what was asked, and the attention half of a block is run
    once and its output kept, so that a block costs about two and a half forward passes rather than the ten of a
    pass per group and stream.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, float32 (:func:`pyprune.models.replay.quiet`).
    adapter : Adapter
    batches : sequence of mappings
        ``input_ids``, ``attention_mask`` and what else the model takes, on the model's device.
    spill : Path, optional
        Folder for activations; default: memory.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter, batches: Sequence[Batch], *, spill: Path | None = None
    ) -> None:
        self._adapter = adapter
        self._first, self._second = adapter.groups[:2], adapter.groups[2:]
        self._keep = [batch["attention_mask"].bool() for batch in batches]
        self._calls: list[BlockCall] = []
        self._arity: int | None = None
        first = adapter.blocks(model)[0]
        device = batches[0]["input_ids"].device
        config: Any = model.config
        width = int(config.hidden_size)
        shapes = [(*mask.shape, width) for mask in self._keep]
        # dense and pruned: the blocks' inputs. middle: attention outputs. target: dense outputs needed later.
        self._stores: dict[str, Store] = {}
        try:
            for name in ("dense", "pruned", "middle", "target"):
                self._stores[name] = MemoryStore(shapes, device) if spill is None else DiskStore(spill, shapes, device)
            for index, (hidden, call) in enumerate(first_calls(model, first, batches)):
                self._calls.append(call)
                self._stores["dense"].put(index, hidden)
                self._stores["pruned"].put(index, hidden)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DualStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of memory and files."""
        for store in self._stores.values():
            store.close()

    def group(
        self, dense: nn.Module, pruned: nn.Module, index: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
        """Inputs and targets of one group of linears, batch by batch.

        Parameters
        ----------
        dense, pruned : nn.Module
            The block as it was, and as it is with all earlier groups pruned.
        index : int
            Which of the adapter's groups; each must be exhausted, in order.

        Yields
        ------
        inputs : Tensor, shape (batch, tokens, in)
            What the group reads in the pruned block, on the pruned stream.
        outputs : dict of str to Tensor, shape (batch, tokens, out)
            What each linear gives in the dense block, on the dense stream.
        keep : Tensor of bool, shape (batch, tokens)
        """
        step = (self._enter, self._attention_out, self._feed_in, self._feed_out)[index]
        for batch, (call, keep) in enumerate(zip(self._calls, self._keep, strict=True)):
            inputs, outputs = step(dense, pruned, batch, call)
            # OPT's feed-forward half sees its tokens in one row.
            shaped = {name: output.reshape(*keep.shape, -1) for name, output in outputs.items()}
            yield inputs.reshape(*keep.shape, -1), shaped, keep

    def _enter(
        self, dense: nn.Module, pruned: nn.Module, batch: int, call: BlockCall
    ) -> tuple[Tensor, dict[str, Tensor]]:
        names, (out,), attention = self._first[0], self._first[1], self._adapter.attention
        hidden = self._stores["dense"].get(batch)
        seen = run_block(dense, call, hidden, outputs=(*names, out, attention))
        self._keep_attention(batch, seen.outputs[attention], hidden)
        self._stores["target"].put(batch, seen.outputs[out])
        inputs = run_block(pruned, call, self._stores["pruned"].get(batch), inputs=names[:1]).inputs
        return inputs[names[0]], {name: seen.outputs[name] for name in names}

    def _attention_out(
        self, dense: nn.Module, pruned: nn.Module, batch: int, call: BlockCall
    ) -> tuple[Tensor, dict[str, Tensor]]:
        (name,) = self._first[1]
        inputs = run_block(pruned, call, self._stores["pruned"].get(batch), inputs=(name,)).inputs
        return inputs[name], {name: self._stores["target"].get(batch)}

    def _feed_in(
        self, dense: nn.Module, pruned: nn.Module, batch: int, call: BlockCall
    ) -> tuple[Tensor, dict[str, Tensor]]:
        names, (out,), attention = self._second[0], self._second[1], self._adapter.attention
        hidden = self._stores["dense"].get(batch)
        seen = run_block(dense, call, hidden, outputs=(*names, out), substitute=self._attention_done(batch), stop=False)
        assert seen.hidden is not None
        self._stores["target"].put(batch, seen.outputs[out])
        self._stores["dense"].put(batch, seen.hidden)  # the dense stream is through this block
        hidden = self._stores["pruned"].get(batch)
        half = run_block(pruned, call, hidden, inputs=names[:1], outputs=(attention,))
        self._keep_attention(batch, half.outputs[attention], hidden)
        return half.inputs[names[0]], {name: seen.outputs[name] for name in names}

    def _feed_out(
        self, dense: nn.Module, pruned: nn.Module, batch: int, call: BlockCall
    ) -> tuple[Tensor, dict[str, Tensor]]:
        (name,) = self._second[1]
        hidden = self._stores["pruned"].get(batch)
        inputs = run_block(pruned, call, hidden, inputs=(name,), substitute=self._attention_done(batch)).inputs
        return inputs[name], {name: self._stores["target"].get(batch)}

    def advance(self, pruned: nn.Module) -> None:
        """Move the pruned stream through the finished block, after its last group (the dense one is through)."""
        for batch, call in enumerate(self._calls):
            done = self._attention_done(batch)
            self._move("pruned", pruned, batch, call, done)

    def skip(self, dense: nn.Module, pruned: nn.Module) -> None:
        """Move both streams through a block that was finished in an earlier run."""
        for batch, call in enumerate(self._calls):
            self._move("dense", dense, batch, call, None)
            self._move("pruned", pruned, batch, call, None)

    def _move(
        self, stream: str, block: nn.Module, batch: int, call: BlockCall, done: tuple[str, Tensor, int | None] | None
    ) -> None:
        hidden = run_block(block, call, self._stores[stream].get(batch), substitute=done, stop=False).hidden
        assert hidden is not None
        self._stores[stream].put(batch, hidden)

    def _keep_attention(self, batch: int, output: object, like: Tensor) -> None:
        self._arity = len(output) if isinstance(output, (tuple, list)) else None
        self._stores["middle"].put(batch, hidden_of(output, like))

    def _attention_done(self, batch: int) -> tuple[str, Tensor, int | None]:
        return self._adapter.attention, self._stores["middle"].get(batch), self._arity
