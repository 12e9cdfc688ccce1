# SPDX-License-Identifier: Apache-2.0
"""Two layers of an encoder: pyprune.ops.encoder beside the same in torch (linears by its BLAS, attention by SDPA).

"kept" is the share of weights that are not zero; torch multiplies all of them in every case. With "padded" sentences
have different lengths, as in a real batch: torch multiplies the padding too, pyprune does not. With nothing kept what
is left is attention, norms and layout; torch's side is then SDPA and the norms. Operations count kept weights and real
tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Report, arguments, interleaved
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from pyprune import ops
from pyprune.ops.encoder import EncoderLayer, arrange

LAYERS = 2
# hidden, inner, head: MiniLM and BERT base.
MODELS = ((384, 1536, 32), (768, 3072, 64))
BATCHES = ((1, 25), (8, 128), (2, 512))
KEPT = (0.0, 0.05, 0.1, 0.3, 0.5, 1.0)


def main() -> None:
    options = arguments("Layers of an encoder", rounds=9)
    report = Report("encoder", write_file=not options.no_write)
    for model in ((32, 64, 8),) if options.quick else MODELS:
        for kept in (0.0, 0.1, 1.0) if options.quick else KEPT:
            weights = [random_weights(*model[:2], kept, seed) for seed in range(LAYERS)]
            layers = [arranged(weight, kept) for weight in weights]
            for sequences, length in ((2, 9),) if options.quick else BATCHES:
                for padded in (False, True) if sequences > 1 else (False,):
                    hidden = torch.randn(sequences, length, model[0], generator=torch.Generator().manual_seed(2))
                    case = {"hidden": model[0], "sequences": sequences, "length": length, "padded": padded}
                    measure(report, {**case, "kept": kept}, hidden, weights, layers, model[2], options.rounds)
    report.write()


def random_weights(hidden: int, inner: int, kept: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for out, columns in ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)):
        weight = torch.randn(out, columns, generator=generator) / columns**0.5
        made.append(weight * (torch.rand(out, columns, generator=generator) < kept))
    return made


def arranged(weights: list[Tensor], kept: float) -> EncoderLayer:
    packed = [ops.prepare(ops.compress(w, format="dense" if kept == 1 else "bitmask")) for w in weights]
    hidden, inner = weights[3].shape
    vectors = torch.zeros(9 * hidden + inner)
    vectors[4 * hidden : 5 * hidden] = 1.0
    vectors[-2 * hidden : -hidden] = 1.0
    return EncoderLayer(*map(arrange, packed), vectors)


def measure(
    report: Report,
    case: dict[str, object],
    hidden: Tensor,
    weights: list[list[Tensor]],
    layers: list[EncoderLayer],
    head: int,
    rounds: int,
) -> None:
    sequences, length, features = hidden.shape
    lengths = torch.linspace(length, max(1, length // 8), sequences).long()
    keep = torch.arange(length) < lengths[:, None] if case["padded"] else torch.ones(sequences, length).bool()
    mask = keep[:, None, None, :] if case["padded"] else None
    linears = case["kept"] != 0.0

    def in_torch() -> Tensor:
        x = hidden
        for project, output, up, down in weights:
            qkv = linear(x, project) if linears else x.repeat(1, 1, 3)
            q, k, v = (part.unflatten(-1, (-1, head)).transpose(1, 2) for part in qkv.chunk(3, -1))
            attended = scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
            a = layer_norm(x + (linear(attended, output) if linears else attended), (features,))
            x = layer_norm(a + (linear(gelu(linear(a, up)), down) if linears else a), (features,))
        return x

    def ours() -> Tensor:
        return ops.encoder(hidden, layers, keep if case["padded"] else None, head=head, eps=1e-5)

    candidates: dict[str, Callable[[], Tensor]] = {"pyprune": ours, "torch": in_torch}
    with torch.inference_mode():
        measured = {"max_difference": (ours() - in_torch())[keep].abs().max().item()} if linears else {}
        timings = interleaved(candidates, rounds=rounds)
    kept = sum(int(torch.count_nonzero(weight)) for layer in weights for weight in layer)
    pairs = int((keep.sum(1) ** 2).sum())
    operations = 2 * kept * int(keep.sum()) + 4 * LAYERS * features * pairs
    report.add(case, timings, ours="pyprune", gflops=operations / timings["pyprune"].median * 1e-9, **measured)


if __name__ == "__main__":
    main()
