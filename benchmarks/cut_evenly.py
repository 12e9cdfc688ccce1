# SPDX-License-Identifier: Apache-2.0
"""A BERT-base-shaped classifier of random weights, and the same cut evenly, as folders for `pyprune bench model`.

Every layer keeps about the same part: of 12 heads at 20 %, three in two layers of five and two in the others, and 614
of 3072 neurons.

    python benchmarks/cut_evenly.py 0.2 --tokenizer MODEL --output FOLDER
    pyprune bench model FOLDER/dense FOLDER/cut --threads 2 --batch 1,8,32 --length real,128 --data dev.tsv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import pyprune
from pyprune.structured import dense_units
from pyprune.units import Units


def even(units: Units, part: float) -> Units:
    """The first heads and neurons of every layer; rounding is made good in the next layer."""
    layers = len(units.layers)
    heads, neurons = (torch.zeros(layers, count, dtype=torch.bool) for count in (units.heads, units.neurons))
    for mask in (heads, neurons):
        ends = [round(part * mask.shape[1] * (layer + 1)) for layer in range(layers)]
        for layer, (before, after) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            mask[layer, : after - before] = True
    return Units.from_masks(units.hidden, heads, neurons, width=units.width)


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", type=float, help="of heads and neurons that is left")
    parser.add_argument("--tokenizer", required=True, help="folder of a model with BERT's words")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval()
    units = even(dense_units(model), options.part)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    for name, made in (("dense", model), ("cut", pyprune.compact(model, units))):
        made.save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)
    dense = Units.dense(units.hidden, units.heads, units.width, units.neurons, layers=len(units.layers))
    print(f"{units.macs(128) / dense.macs(128):.3f} of the multiply-adds at 128 tokens are left")


if __name__ == "__main__":
    main()
