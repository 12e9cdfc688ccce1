# SPDX-License-Identifier: Apache-2.0
"""The problems the solvers are judged on: layers of a real model, and synthetic ones of any shape.

Real (`minilm.q`, `.o`, `.fc1`, `.fc2`): query, attention output, intermediate and output of one block of a
checkpoint (by default the demo's), with the second moments of the dense model's inputs on a fixed number of real
tokens. Sentences are drawn by seed, the last one is cut so that the number is exact, padding is left out.

Synthetic (`bert.768x3072`, `llm.4096x4096`: family, then out x in): with ``k`` inputs

- inputs ``x = s ∘ (A f + c + n)``: ``A`` is a random ``[k, k/4]`` matrix whose columns decay like ``1/√i`` (low
  effective rank), ``f`` standard normal, ``c`` a constant vector (features have means), ``n`` white noise;
- ``A Aᵀ + c cᵀ + noise`` is scaled to a unit diagonal, so that ``s`` alone decides how large a feature is;
- ``s`` is log-normal, and ``k/128`` outlier features are 10 to 50 times as large again;
- ``gram = E[x xᵀ]`` is that covariance itself in float64; with ``tokens`` it is the mean over as many samples;
- ``weight``: normal entries plus a part of rank ``k/16``, times a log-normal scale for each column, smaller where
  the feature is larger (trained layers compensate), and divided by ``√k``; float32.

The seed is a hash of the name. `python benchmarks/solver/problems.py --save DIR` writes them as safetensors: `W`
float32 `[out, in]`, `H` float64 `[in, in]`.
"""

from __future__ import annotations

import argparse
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import LayerProblem, ops
from pyprune.errors import InputError

LAYERS = ("q", "o", "fc1", "fc2")
SHAPES = ("bert.768x768", "bert.3072x768", "bert.768x3072", "llm.2048x2048", "llm.4096x4096")
QUICK = ("bert.24x32", "llm.20x36")
MINILM = "minilm"


@dataclass(frozen=True)
class Family:
    """What distinguishes the synthetic problems of one kind of model.

    Attributes
    ----------
    spread : float
        Standard deviation of the logarithm of the feature scales.
    outliers : (float, float)
        Outlier features are between these times as large as the others.
    noise : float
        White noise beside the correlated part, as a share of the mean variance.
    mean : float
        Energy of the constant part, likewise.
    """

    spread: float
    outliers: tuple[float, float]
    noise: float
    mean: float


FAMILIES = {
    "bert": Family(spread=0.5, outliers=(10.0, 20.0), noise=0.25, mean=0.3),
    "llm": Family(spread=0.7, outliers=(10.0, 50.0), noise=0.2, mean=0.3),
}


@dataclass(frozen=True)
class Checkpoint:
    """Where the real problems come from.

    Attributes
    ----------
    folder, text : str, optional
        Checkpoint and text; by default the demo's.
    name : str, optional
        What stands before the dot of a problem's name. Default: `minilm` for the demo's model, else the folder's name.
    block : int
        Which Transformer block, the first being 0.
    tokens : int
        Real tokens whose second moments are taken.
    seed : int
        Of the draw of sentences.
    """

    folder: str | None = None
    text: str | None = None
    name: str | None = None
    block: int = 2
    tokens: int = 16384
    seed: int = 0

    @property
    def prefix(self) -> str:
        """The part of a problem's name before the dot."""
        return self.name or (MINILM if self.folder is None else Path(self.folder).resolve().name)


def names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """All problems of a full run."""
    return (*(f"{checkpoint.prefix}.{layer}" for layer in LAYERS), *SHAPES)


def make(wanted: Sequence[str], checkpoint: Checkpoint) -> Iterator[LayerProblem]:
    """The problems by name, in the order asked for, each made when its turn comes.

    Raises
    ------
    InputError
        An unknown name.
    """
    parsed = [_parse(name, checkpoint) for name in wanted]
    layers = tuple(layer for layer in LAYERS if layer in parsed)
    captured = real(checkpoint, layers) if layers else {}
    for name, parts in zip(wanted, parsed, strict=True):
        if isinstance(parts, str):
            yield captured[parts]
        else:
            yield synthetic(*parts, name=name)


def _parse(name: str, checkpoint: Checkpoint) -> str | tuple[str, int, int]:
    prefix, _, rest = name.rpartition(".")
    shape = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", rest)
    if prefix in FAMILIES and shape:
        return prefix, int(shape[1]), int(shape[2])
    if prefix == checkpoint.prefix and rest in LAYERS:
        return rest
    raise InputError(
        f"unknown problem {name!r}",
        hint=f"{checkpoint.prefix}.{{{','.join(LAYERS)}}}, or ROWSxCOLUMNS after {' or '.join(FAMILIES)}, "
        f"such as {SHAPES[0]}",
    )


# Real layers


def real(checkpoint: Checkpoint, layers: Sequence[str] = LAYERS) -> dict[str, LayerProblem]:
    """Layers of one block of a dense model, with the moments of their inputs on real tokens.

    Returns
    -------
    dict of str to LayerProblem
        By layer: `q`, `o`, `fc1`, `fc2`. Weights float32, grams float64.

    Raises
    ------
    InputError
        The model or the text cannot be read, the model has no such block, or the text has too few tokens.
    """
    from pyprune.commands.checkpoints import open_model, open_tokenizer
    from pyprune.demo import model_folder
    from pyprune.models import adapter_for, families
    from pyprune.stats import Moments

    folder = str(checkpoint.folder or model_folder())
    model = open_model(folder, families=families())
    adapter = adapter_for(model)
    blocks = adapter.blocks(model)
    if not 0 <= checkpoint.block < len(blocks):
        raise InputError(f"{folder} has no block {checkpoint.block}", seen=f"{len(blocks)} blocks, 0 the first")
    linears = adapter.linears(blocks[checkpoint.block])
    chosen = {layer: linears[adapter.groups[LAYERS.index(layer)][0]] for layer in layers}
    moments = {layer: Moments(linear.in_features, {}, name=layer) for layer, linear in chosen.items()}
    for batch, keep in _batches(model, adapter, open_tokenizer(folder), checkpoint):
        for layer, x in _inputs(model, batch, chosen).items():
            moments[layer].add(x, {}, keep)
    return {
        layer: LayerProblem(
            chosen[layer].weight.detach().clone(), moments[layer].finish().gram, name=f"{checkpoint.prefix}.{layer}"
        )
        for layer in layers
    }


def _batches(
    model: nn.Module, adapter: Any, tokenizer: Any, checkpoint: Checkpoint
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches and which of their tokens count: exactly as many as asked for, all real."""
    from pyprune.demo import train_file
    from pyprune.methods.calibration import gather
    from pyprune.tasks import load_texts

    source = checkpoint.text or train_file()
    texts = load_texts(source).texts
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(checkpoint.seed)).tolist()
    sentences: list[str] = []
    seen = 0
    # A sentence of more than 128 tokens is cut there, by `gather` as well.
    for index in order:
        if seen >= checkpoint.tokens:
            break
        sentences.append(texts[index])
        seen += len(tokenizer(texts[index], truncation=True, max_length=128)["input_ids"])
    if seen < checkpoint.tokens:
        raise InputError(
            f"{source} is too short", asked=f"{checkpoint.tokens} tokens", seen=f"{seen} in {len(texts)} sentences"
        )
    left = checkpoint.tokens
    for batch in gather(sentences, model, adapter, tokenizer=tokenizer, samples=len(sentences)).batches:
        keep = batch["attention_mask"].bool()
        rank = keep.flatten().cumsum(0).reshape(keep.shape)
        yield batch, keep & (rank <= left)
        left -= min(left, int(keep.sum()))


def _inputs(model: nn.Module, batch: dict[str, Tensor], linears: dict[str, nn.Linear]) -> dict[str, Tensor]:
    from pyprune.models.replay import quiet

    seen: dict[str, Tensor] = {}

    def note(layer: str) -> Any:
        return lambda _, args: seen.__setitem__(layer, args[0].detach())

    handles = [linear.register_forward_pre_hook(note(layer)) for layer, linear in linears.items()]
    try:
        with quiet(model):
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


# Synthetic problems


def synthetic(family: str, rows: int, columns: int, *, name: str = "", tokens: int | None = None) -> LayerProblem:
    """A problem of the given shape; the recipe is at the top of this file.

    Parameters
    ----------
    family : {"bert", "llm"}
    rows, columns : int
        Outputs and inputs of the layer.
    name : str
        Of the problem; the seed is its hash. Default: `family.ROWSxCOLUMNS`.
    tokens : int, optional
        Take the gram of so many samples instead of the covariance itself.
    """
    kind = FAMILIES[family]
    name = name or f"{family}.{rows}x{columns}"
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scale = torch.exp(kind.spread * normal(columns))
    loud = torch.randperm(columns, generator=generator)[: max(1, columns // 128)]
    low, high = kind.outliers
    scale[loud] *= low + (high - low) * torch.rand(len(loud), generator=generator, dtype=torch.float64)

    rank = max(1, columns // 4)
    mixing = normal(columns, rank) * torch.arange(1, rank + 1, dtype=torch.float64).pow(-0.5)
    variance = mixing.square().sum(dim=1).mean()
    constant = (kind.mean * variance).sqrt() * normal(columns)
    power = mixing.square().sum(dim=1) + constant.square() + kind.noise * variance
    factor = torch.cat([mixing, constant.unsqueeze(1)], dim=1) * (scale / power.sqrt()).unsqueeze(1)
    noise = kind.noise * variance * scale.square() / power
    if tokens is None:
        gram = factor @ factor.T
        gram.diagonal().add_(noise)
    else:
        gram = _sampled(factor, noise.sqrt(), tokens, generator)

    weight = normal(rows, columns)
    thin = max(1, columns // 16)
    weight += 0.5 * normal(rows, thin) @ normal(thin, columns) / thin**0.5
    weight *= torch.exp(0.3 * normal(columns)) / (scale.pow(0.7) * columns**0.5)
    return LayerProblem(weight.float(), gram, name=name)


def _sampled(factor: Tensor, noise: Tensor, tokens: int, generator: torch.Generator) -> Tensor:
    """Mean of ``x xᵀ`` over samples; the last column of ``factor`` is the constant part."""
    gram = factor.new_zeros(len(factor), len(factor))
    for start in range(0, tokens, 4096):
        count = min(4096, tokens - start)
        latent = torch.randn(count, factor.shape[1], generator=generator)
        latent[:, -1] = 1.0
        x = latent @ factor.T.float() + torch.randn(count, len(factor), generator=generator) * noise.float()
        ops.gram(x, out=gram)
    return gram / tokens


# As a program


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which problems, and what the real ones are made of."""
    parser.add_argument("--problems", help=f"names, with commas; or any shape, such as {SHAPES[0]} (default: all)")
    parser.add_argument("--model", help="a fine-tuned checkpoint for the real layers (default: the demo's)")
    parser.add_argument("--model-name", help="what stands before the dot in their names (default: the folder's)")
    parser.add_argument("--text", help="its calibration text, one sentence a row (default: the demo's)")
    parser.add_argument("--block", type=int, default=2, help="its Transformer block, from 0 (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16384, help="real tokens of the gram (default: %(default)s)")


def chosen(options: argparse.Namespace) -> tuple[Checkpoint, list[str]]:
    """The checkpoint and the names of the problems that the flags ask for."""
    checkpoint = Checkpoint(options.model, options.text, options.model_name, options.block, options.tokens)
    given = [name for name in (options.problems or "").split(",") if name]
    return checkpoint, given or list(names(checkpoint))


def main() -> None:
    """Write problems into a folder."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--save", type=Path, required=True, help="folder for one safetensors file a problem")
    options = parser.parse_args()
    options.save.mkdir(parents=True, exist_ok=True)
    try:
        checkpoint, wanted = chosen(options)
        for problem in make(wanted, checkpoint):
            tensors = {"W": problem.weight.float().contiguous(), "H": problem.gram.contiguous()}
            save_file(tensors, options.save / f"{problem.name}.safetensors")
            print(f"{problem.name}: {problem.shape[0]} x {problem.shape[1]}")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
