# SPDX-License-Identifier: Apache-2.0
"""``prune_streaming``: a language model pruned layer by layer from disk, or from a config, never whole in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import check_target, whole_folder
from pyprune.methods.calibration import gather, random_batches
from pyprune.methods.driver import Driver, Progress, Silent
from pyprune.methods.journal import Journal, fingerprint, model_sha256
from pyprune.methods.plan import estimate_streaming, make_plan
from pyprune.methods.report import Clock, make_report
from pyprune.methods.request import resolve
from pyprune.models.replay import quiet
from pyprune.models.skeleton import Skeleton, read_config
from pyprune.models.weights import (
    SHARD,
    Checkpoint,
    RandomWeights,
    ShardWriter,
    Source,
    TensorWriter,
)
from pyprune.ops.sparse_weight import pack_bits
from pyprune.patterns import Pattern
from pyprune.result import write_report
from pyprune.sparse.mask_file import MASKS, mask_shapes, mask_specs


@dataclass(frozen=True)
class StreamResult:
    """What a run left on disk.

    Attributes
    ----------
    path : Path or None
        A folder that ``AutoModelForCausalLM.from_pretrained`` and :func:`pyprune.load` load. None after a dry run.
    report : dict
        As in :class:`pyprune.PruneResult`.
    """

    path: Path | None
    report: dict[str, Any]


def prune_streaming(
    source: str | os.PathLike[str],
    data: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    random_weights: bool = False,
    tokenizer: Any = None,
    method: str = "akr",
    sparsity: float | None = None,
    pattern: Pattern | str | None = None,
    solver: str | None = None,
    rectify: bool | None = None,
    damping: float | None = None,
    samples: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    text: str | None = None,
    text_pair: str | None = None,
    spill: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
    solver_options: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD,
    device: torch.device | str = "cpu",
) -> StreamResult:
    """Prune a causal language model that need not fit into memory; the bits are those of :func:`pyprune.prune`.

    One block at a time is read in float32, pruned, and written to a journal beside the output; at the end the blocks
    go from there, in the type they had in the checkpoint, into sharded safetensors. Memory is one block with its
    statistics and the hidden states of two streams (or, with ``spill``, of one batch). The plan says how much before
    the run begins.

    Parameters
    ----------
    source : path
        Folder with ``config.json`` and safetensors; with ``random_weights`` a folder or file with the config alone.
    data : optional
        As for :func:`pyprune.prune`. None with ``random_weights``: random tokens.
    output : path
        Folder for the result; only a dry run needs none. Finished blocks are kept in ``OUTPUT.journal`` until it is
        written.
    random_weights : bool
        Draw all weights from ``seed``: to measure a shape without its weights.
    tokenizer, method, sparsity, pattern, solver, rectify, damping, samples, max_length, batch_size, seed
        As for :func:`pyprune.prune`.
    text, text_pair, spill, progress, dry_run, solver_options
        Likewise.
    resume : bool
        Go on with ``OUTPUT.journal``.
    shard_bytes : int
        Bytes of weights in a file at most.
    device : torch.device or str
        Where blocks are run and solved.

    Returns
    -------
    StreamResult

    Raises
    ------
    InputError, NumericsError
        As :func:`pyprune.prune` does.

    Examples
    --------
    >>> pyprune.prune_streaming("llama-7b", texts, tokenizer=tokenizer, output="pruned")  # doctest: +SKIP
    >>> pyprune.prune_streaming("config.json", random_weights=True, output="pruned")  # doctest: +SKIP
    """
    clock = Clock()
    progress = Silent() if progress is None else progress
    target = None if output is None else Path(output).expanduser().absolute()
    if target is not None:
        check_target(target)
    request = resolve(
        method,
        solver=solver,
        rectify=rectify,
        sparsity=sparsity,
        pattern=pattern,
        damping=damping,
        solver_options=solver_options,
        seed=seed,
    )
    folder = Path(source).expanduser()
    config = read_config(folder)
    weights: Source = RandomWeights.like(config, seed) if random_weights else Checkpoint(folder)
    skeleton = Skeleton(config, weights, device)
    if data is None:
        if not random_weights:
            raise InputError("a model with weights of its own needs text", hint="data=, some sentences of its language")
        data = random_batches(skeleton.model, skeleton.adapter, samples, max_length, batch_size, seed)
    calibration = gather(
        data,
        skeleton.model,
        skeleton.adapter,
        tokenizer=tokenizer,
        samples=samples,
        max_length=max_length,
        batch_size=batch_size,
        seed=seed,
        text=text,
        text_pair=text_pair,
        device=skeleton.device,
    )
    memory = estimate_streaming(skeleton, calibration, spill=spill is not None)
    plan = make_plan(skeleton.model, skeleton.adapter, request, calibration, memory, streaming=True)
    if dry_run:
        return StreamResult(None, {"dry_run": True, "plan": plan.to_dict()})
    if target is None:
        raise InputError("a model pruned layer by layer is written while it is pruned", hint="output=, a folder")
    for line in plan.describe():
        progress.note(line)
    sha256 = model_sha256(config, _tensors(skeleton), identity=weights.identity())
    settings = request.settings(calibration.batches)
    journal = Journal(
        journal_folder(target),
        fingerprint(sha256, calibration.sha256, settings, skeleton.device.type),
        resume=resume,
    )
    clock.ready()
    with quiet(skeleton.model):
        outcome = Driver(
            blocks=skeleton,
            adapter=skeleton.adapter,
            recipe=request.recipe,
            pattern=request.pattern,
            batches=calibration.batches,
            damping=damping,
            options=request.options,
            spill=None if spill is None else Path(spill).expanduser(),
            journal=journal,
            progress=progress,
            keep_masks=False,
        ).run()
    choices = calibration.choices(batch_size)
    report = make_report(
        request,
        plan,
        calibration,
        outcome,
        skeleton.model,
        skeleton.adapter,
        sha256=sha256,
        device=skeleton.device,
        choices=choices | {"spill": spill is not None, "streaming": True, "random_weights": random_weights},
        clock=clock,
    )
    types = sorted({str(spec.dtype).removeprefix("torch.") for spec in skeleton.specs.values()})
    report["notes"].append(f"blocks were pruned in float32, one at a time, and are stored in {', '.join(types)}")
    _write(target, skeleton, journal, report, folder, tokenizer, shard_bytes)
    shutil.rmtree(journal.folder, ignore_errors=True)
    return StreamResult(target, report)


def journal_folder(output: Path) -> Path:
    """Where finished blocks are kept until ``output`` is written."""
    return output.with_name(f"{output.name}.journal")


def _tensors(skeleton: Skeleton) -> Iterator[tuple[str, Tensor]]:
    for name, like in sorted(skeleton.parameters.items()):
        yield name, like if skeleton.source.identity() is not None else skeleton.read(name)


def _write(
    target: Path,
    skeleton: Skeleton,
    journal: Journal,
    report: dict[str, Any],
    source: Path,
    tokenizer: Any,
    shard_bytes: int,
) -> None:
    """Put the result together, one block in memory at a time."""
    model, adapter, specs = skeleton.model, skeleton.adapter, skeleton.specs
    masks = {
        f"{adapter.block_name(model, index)}.{name}": tuple(linear.weight.shape)
        for index, block in enumerate(adapter.blocks(model))
        for name, linear in adapter.linears(block).items()
    }
    packed = mask_specs(masks)
    needed = sum(spec.bytes for spec in [*specs.values(), *packed.values()])
    with (
        whole_folder(target, needed) as part,
        ShardWriter(part, specs, shard_bytes) as weights,
        TensorWriter(part / MASKS, packed, mask_shapes(masks)) as bits,
    ):
        left = dict.fromkeys(specs)
        for index in range(len(skeleton)):
            prefix = adapter.block_name(model, index)
            finished = journal.load(index)
            for name, value in finished.tensors.items():
                weights.put(f"{prefix}.{name}", value)
                del left[f"{prefix}.{name}"]
            for name, mask in finished.masks.items():
                bits.put(f"{prefix}.{name}", pack_bits(mask))
        for name in left:
            weights.put(name, skeleton.read(name))
        _write_config(part, skeleton, source)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        write_report(part, report)


def _write_config(folder: Path, skeleton: Skeleton, source: Path) -> None:
    config: Any = skeleton.model.config
    config.architectures = [type(skeleton.model).__name__]
    if config.dtype is None:
        config.dtype = next(iter(skeleton.specs.values())).dtype
    config.save_pretrained(folder)
    generation = source / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
