# SPDX-License-Identifier: Apache-2.0
"""Small pruned models with a matrix of every format, and their files taken apart and put together again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_models import build_model
from torch import Tensor

from pyprune import PruneResult
from pyprune.models import adapter_for
from pyprune.patterns import NM, Block, Unstructured

PATTERNS = [Unstructured(0.9), Unstructured(0.5), NM(2, 4), Block(4, 2, 0.75), NM(1, 8), Unstructured(0.0)]


def pruned(family: str = "bert", head: str = "classification", **sizes: Any) -> PruneResult:
    """A tiny model whose linears have the patterns in turn, by magnitude."""
    model: Any = build_model(family, head, **{"layers": 1, "hidden": 16, "inner": 24, **sizes})
    adapter, masks = adapter_for(model), {}
    for index, block in enumerate(adapter.blocks(model)):
        for number, (name, linear) in enumerate(adapter.linears(block).items()):
            mask = PATTERNS[number % len(PATTERNS)].select(linear.weight.detach().abs())
            linear.weight.data.mul_(mask)
            masks[f"{adapter.block_name(model, index)}.{name}"] = mask
    return PruneResult(model, masks, {"method": "magnitude"})


def logits(model: Any) -> Tensor:
    """Of two short rows."""
    rows = torch.tensor([[5, 9, 7, 3], [8, 6, 4, 2]], device=model.device)
    with torch.inference_mode():
        found: Tensor = model(input_ids=rows).logits
        return found


class Pieces:
    """A safetensors file: its header as JSON, its metadata for compressed models as JSON, and its tensors' bytes."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:8], "little")
        self.header: dict[str, Any] = json.loads(data[8 : 8 + length])
        # The files of transformers have no description of matrices.
        self.metadata: dict[str, str] = self.header.pop("__metadata__", {})
        self.head: Any = json.loads(self.metadata.pop("pyprune", "{}"))
        body = data[8 + length :]
        self.tensors = {name: bytearray(body[slice(*entry["data_offsets"])]) for name, entry in self.header.items()}

    def sum_up(self) -> None:
        """Make the checksums right again."""
        for name, data in self.tensors.items() if self.head else ():
            entry = self.header[name]
            line = " ".join([entry["dtype"], *map(str, entry["shape"])]) + "\n"
            self.head["crc32"][name] = zlib.crc32(line.encode() + data)

    def join(self) -> bytes:
        """The file, with offsets that follow from the tensors' bytes."""
        own = {"pyprune": json.dumps(self.head)} if self.head else {}
        header: dict[str, Any] = {"__metadata__": self.metadata | own}
        end = 0
        for name, data in self.tensors.items():
            header[name] = self.header[name] | {"data_offsets": [end, end + len(data)]}
            end += len(data)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + b"".join(self.tensors.values())


def rewrite(path: Path, change: Callable[[Pieces], object], *, sums: bool = True) -> None:
    """Change a file, and unless it is that which is tested give it right checksums."""
    pieces = Pieces(path.read_bytes())
    change(pieces)
    if sums:
        pieces.sum_up()
    path.write_bytes(pieces.join())
