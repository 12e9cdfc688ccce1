# SPDX-License-Identifier: Apache-2.0
"""Run a block again on other hidden states, with exactly the arguments the real model gave it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError


class _Stop(Exception):  # noqa: N818  (nothing went wrong)
    """Leaves a forward pass once everything asked for was seen."""


@dataclass(frozen=True)
class BlockCall:
    """Arguments of a block for one batch, without the hidden states, which change.

    Every batch keeps its own: the attention mask is among them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_key: str | None  # None: the hidden states are the first positional argument

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        """Call ``block`` on ``hidden`` ``[batch, tokens, width]``."""
        args = tuple(_expand(value) for value in self.args)
        kwargs = {key: _expand(value) for key, value in self.kwargs.items()}
        if self.hidden_key is None:
            return block(hidden, *args, **kwargs)
        return block(*args, **{**kwargs, self.hidden_key: hidden})


@dataclass(frozen=True)
class _SameRows:
    """A mask ``[batch, heads, queries, keys]`` whose query rows are all alike: one is stored, the rest are views."""

    row: Tensor  # [batch, heads, 1, keys]
    queries: int


def _compact(value: Any) -> Any:
    # A full mask is batch·T² and would outgrow the hidden states on long text.
    if isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] > 1:
        first = value[:, :, :1]
        if bool((value == first).all()):
            return _SameRows(first.clone(), value.shape[2])
    return value


def _expand(value: Any) -> Any:
    if isinstance(value, _SameRows):
        return value.row.expand(-1, -1, value.queries, -1)
    return value


class Shared:
    """One copy of arguments that many batches have in common, such as rotary angles and causal masks.

    A tensor is compared with the last one in its place that had its shape: batches of one length follow each other.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[object, ...], Tensor] = {}

    def call(self, call: BlockCall) -> BlockCall:
        """The same arguments, in tensors that are held already where there are such."""
        args, kwargs = self._value(call.args, ()), {key: self._value(v, (key,)) for key, v in call.kwargs.items()}
        return BlockCall(args, kwargs, call.hidden_key)

    def _value(self, value: Any, place: tuple[object, ...]) -> Any:
        if isinstance(value, _SameRows):
            return _SameRows(self._value(value.row, place), value.queries)
        if isinstance(value, tuple):
            return tuple(self._value(part, (*place, index)) for index, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        key = (*place, value.shape, value.dtype)
        last = self._last.get(key)
        if last is None or not torch.equal(last, value):
            last = self._last[key] = value
        return last


def capture_call(model: nn.Module, block: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, BlockCall]:
    """Run the real model up to ``block`` and take its input.

    Parameters
    ----------
    model, block : nn.Module
        ``block`` is a module of ``model``.
    batch : mapping of str to Tensor
        Keyword arguments of the model.

    Returns
    -------
    hidden : Tensor, shape (batch, tokens, width)
    call : BlockCall
        Everything else the model hands to the block.

    Raises
    ------
    InputError
        The block was never reached, or was called without hidden states.
    """
    seen: list[tuple[Tensor, BlockCall]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(_split(args, kwargs))
        raise _Stop

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with suppress(_Stop):
            model(**batch)
    finally:
        handle.remove()
    if not seen:
        raise InputError("the model's forward pass never reached its first block", seen=type(model).__name__)
    return seen[0]


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    if args and isinstance(args[0], Tensor):
        rest = tuple(_compact(value) for value in args[1:])
        return args[0].detach(), BlockCall(rest, {k: _compact(v) for k, v in kwargs.items()}, None)
    for key in ("hidden_states", "x", "hidden_state"):
        if isinstance(kwargs.get(key), Tensor):
            rest_kw = {k: _compact(v) for k, v in kwargs.items() if k != key}
            return kwargs[key].detach(), BlockCall(tuple(_compact(v) for v in args), rest_kw, key)
    raise InputError("the first block was called without hidden states", seen=f"keywords {sorted(kwargs)}")


def hidden_of(output: Any, like: Tensor) -> Tensor:
    """The hidden states among what a block or attention module returned: the tensor shaped as its input."""
    parts = output if isinstance(output, (tuple, list)) else (output,)
    for part in parts:
        if isinstance(part, Tensor) and part.shape == like.shape:
            return part.detach()
    raise InputError("a block returned no hidden states of its input's shape", seen=type(output).__name__)


@contextmanager
def substituted(module: nn.Module, output: Tensor, like: Any) -> Iterator[None]:
    """Within the context ``module`` does no work and returns ``output``.

    Parameters
    ----------
    module : nn.Module
    output : Tensor
        The hidden states to return.
    like : int or None
        None: return the bare tensor. Otherwise the length of the tuple to return, hidden states first.
    """

    def forward(*_: Any, **__: Any) -> Any:
        return output if like is None else (output, *([None] * (like - 1)))

    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward  # the class's own forward shows through again
        else:
            module.forward = own


@dataclass
class Seen:
    """What one pass through a block left behind, by relative module name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Any]
    hidden: Tensor | None  # the block's output; None if the pass stopped before


def run_block(
    block: nn.Module,
    call: BlockCall,
    hidden: Tensor,  # [batch, tokens, width]
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    substitute: tuple[str, Tensor, int | None] | None = None,
    stop: bool = True,
) -> Seen:
    """One pass of a block on ``hidden``, noting inputs and outputs of named modules.

    Parameters
    ----------
    block, call, hidden
        The block, the batch's own arguments, and its hidden states.
    inputs, outputs : sequence of str
        Modules whose first input, or whose output, is wanted.
    substitute : (name, output, arity), optional
        A module not to run but to take as having returned this; see :func:`substituted`.
    stop : bool
        Leave as soon as everything was seen. False: go on to the block's own output.
    """
    seen = Seen({}, {}, None)
    missing = len(inputs) + len(outputs)

    def saw(store: dict[str, Any], name: str, value: Any) -> None:
        nonlocal missing
        if name not in store:
            missing -= 1
        store[name] = value
        if stop and missing == 0:
            raise _Stop

    def before(name: str) -> Any:
        return lambda _, args: saw(seen.inputs, name, args[0].detach())

    def after(name: str) -> Any:
        return lambda _, __, out: saw(seen.outputs, name, out)

    with ExitStack() as stack:
        if substitute is not None:
            name, output, arity = substitute
            stack.enter_context(substituted(block.get_submodule(name), output, arity))
        for name in inputs:
            stack.callback(block.get_submodule(name).register_forward_pre_hook(before(name)).remove)
        for name in outputs:
            stack.callback(block.get_submodule(name).register_forward_hook(after(name)).remove)
        with suppress(_Stop):
            seen.hidden = hidden_of(call.run(block, hidden), hidden)
    return seen


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, plain fp32 products, no cache, no chunked feed-forward; all restored after."""
    config: Any = getattr(model, "config", None)
    off = ("output_attentions", "output_hidden_states", "use_cache")
    flags = {key: getattr(config, key) for key in off if hasattr(config, key)}
    training = [(module, module.training) for module in model.modules()]
    chunked = [(m, m.chunk_size_feed_forward) for m in model.modules() if hasattr(m, "chunk_size_feed_forward")]
    precision = torch.get_float32_matmul_precision()
    try:
        for key, value in flags.items():
            if value:  # their setters may refuse, so nothing is set without need
                setattr(config, key, False)
        for module, _ in chunked:
            module.chunk_size_feed_forward = 0  # type: ignore[assignment]
        model.eval()
        torch.set_float32_matmul_precision("highest")  # TF32 or bf16 products would destroy small eigendirections
        with torch.no_grad(), ExitStack() as stack:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                stack.enter_context(torch.autocast(device_type=device, enabled=False))
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for module, size in chunked:
            module.chunk_size_feed_forward = size
        for module, was in training:
            module.training = was
        for key, value in flags.items():
            if value:
                setattr(config, key, value)
