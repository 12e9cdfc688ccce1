# SPDX-License-Identifier: Apache-2.0
"""Files as docs/format.md describes them, and one message for everything that can be wrong with one."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small import Pieces, logits, pruned, rewrite

import pyprune
from pyprune.errors import InputError
from pyprune.models.weights import Spec
from pyprune.ops.sparse_weight import compress
from pyprune.result import load_masks
from pyprune.sparse import SparseLinear
from pyprune.sparse.format import encode
from pyprune.sparse.layout import check
from pyprune.sparse.storage import SparseFiles, write_files

LAYER = "bert.encoder.layer.0"
GAPS, BITS, NM, BLOCK = (
    f"{LAYER}.attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small model's file, with int8 values."""
    return pruned().save(tmp_path / "model", storage="sparse", values="int8") / "pyprune.safetensors"


def read_as_documented(path: Path) -> dict[str, list[list[float]]]:
    """Matrices of float32 or int8 values by name, with nothing but the standard library and docs/format.md."""
    pieces, found = Pieces(path.read_bytes()), {}
    for name, entry in pieces.head["matrices"].items():
        out, columns = entry["shape"]
        first, second = entry["geometry"]
        tensors = {
            part: bytes(pieces.tensors.get(f"{name}.{part}", b"")) for part in ("values", "scale", "bits", "gaps")
        }
        kind = {"F32": "f", "I8": "b"}[pieces.header[f"{name}.values"]["dtype"]]
        values = [v for (v,) in struct.iter_unpack(f"<{kind}", tensors["values"])]
        scale = [v for (v,) in struct.iter_unpack("<f", tensors["scale"])] or [1.0] * out
        rows, cols = (first, second) if entry["format"] == "block" else (1, 1)
        grid = (out // rows, columns // cols)
        kept = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
        if f"{name}.gaps" in pieces.tensors:
            position, places = 0, []
            for byte in tensors["gaps"]:
                for nibble in (byte & 15, byte >> 4):
                    places += [position + nibble] if nibble < 15 else []
                    position += min(nibble + 1, 15)
            kept = [divmod(place, grid[1]) for place in places]
        elif entry["format"] != "dense":
            width = -(-grid[1] // 8)
            kept = [(r, c) for r, c in kept if tensors["bits"][r * width + c // 8] >> c % 8 & 1]
        matrix = [[0.0] * columns for _ in range(out)]
        places = [(r * rows + i, c * cols + j) for r, c in kept for i in range(rows) for j in range(cols)]
        assert len(places) == entry["kept"]
        for (row, column), value in zip(places, values, strict=True):
            matrix[row][column] = scale[row] * value
        found[name] = matrix
    return found


@pytest.mark.parametrize("values", ["float32", "int8"])
def test_as_documented(tmp_path: Path, values: str) -> None:
    result = pruned()
    folder = result.save(tmp_path / "model", storage="sparse", values=values)
    found = read_as_documented(folder / "pyprune.safetensors")
    dense = pyprune.load(folder, dense=True).state_dict()
    assert found.keys() == result.masks.keys()
    for name, matrix in found.items():
        torch.testing.assert_close(torch.tensor(matrix), dense[f"{name}.weight"], rtol=1e-6, atol=0)
    pieces = Pieces((folder / "pyprune.safetensors").read_bytes())
    assert {entry["format"] for entry in pieces.head["matrices"].values()} == {"bitmask", "nm", "block", "dense"}
    stated = dict(pieces.head["crc32"])
    pieces.sum_up()
    assert stated == pieces.head["crc32"]


def test_ninety_percent_takes_at_most_the_stated_share(generator: torch.Generator) -> None:
    weight = torch.randn(384, 768, generator=generator)
    mask = pyprune.Unstructured(0.9).select(weight.abs())
    for dtype, most in ((torch.float32, 0.117), (torch.bfloat16, 0.133), (torch.float16, 0.133), (torch.int8, 0.17)):
        tensors = encode(compress(weight, mask, dtype=dtype))
        assert ("gaps" in tensors) == (dtype is not None)
        assert sum(t.nbytes for t in tensors.values()) <= most * weight.numel() * dtype.itemsize
    assert "bits" in encode(compress(weight, pyprune.Unstructured(0.5).select(weight.abs())))


def test_several_files(tmp_path: Path, file: Path) -> None:
    files = SparseFiles(file.parent)
    matrices, plain = {n: files.matrix(n) for n in files.layouts}, {n: files.tensor(n) for n in files.plain}
    wanted = logits(pyprune.load(file.parent))
    file.unlink()
    write_files(file.parent, matrices, plain, limit=3000)
    parts = sorted(file.parent.glob("pyprune-*.safetensors"))
    assert len(parts) > 3
    for part in parts:
        with safe_open(part, framework="pt") as opened:
            names = set(opened.keys())
        for name in Pieces(part.read_bytes()).head["matrices"]:
            assert f"{name}.values" in names  # no matrix is divided
    assert torch.equal(logits(pyprune.load(file.parent)), wanted)
    parts[1].unlink()
    with pytest.raises(InputError, match=parts[1].name):
        pyprune.load(file.parent)
    index = file.parent / "pyprune.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}), encoding="utf-8")
    with pytest.raises(InputError, match="not beside it"):
        pyprune.load(file.parent)


def entry(name: str, key: str, value: object) -> Callable[[Pieces], object]:
    return lambda pieces: pieces.head["matrices"][name].update({key: value})


def part(name: str, place: int, value: int) -> Callable[[Pieces], object]:
    return lambda pieces: pieces.tensors[name].__setitem__(place, value)


def scale(number: float) -> Callable[[Pieces], object]:
    return lambda pieces: pieces.tensors[f"{BITS}.scale"].__setitem__(slice(4, 8), struct.pack("<f", number))


def without(name: str) -> Callable[[Pieces], object]:
    return lambda pieces: (pieces.tensors.pop(name), pieces.header.pop(name), pieces.head["crc32"].pop(name))


HOSTILE: list[tuple[Callable[[Pieces], object], str]] = [
    (entry(BITS, "kept", 127), r"self\.key: not the tensors of bitmask.*127"),
    (entry(BITS, "kept", -1), "cannot keep so many"),
    (entry(BITS, "kept", 10**300), "far too large"),
    (entry(BITS, "shape", [16, 2**40]), r"self\.key: "),
    (entry(BITS, "shape", [-16, -16]), "does not fit the matrix"),
    (entry(BITS, "shape", [16.0, 16]), "whole numbers"),
    (entry(BITS, "shape", [True, 16]), "whole numbers"),
    (entry(BITS, "format", "csr"), "unknown format 'csr'"),
    (entry(BITS, "extra", 1), "shape, format, geometry and kept"),
    (entry(NM, "geometry", [1, 4]), r"self\.value: nm of this matrix cannot keep"),
    (entry(NM, "geometry", [2, 0]), "does not fit the matrix"),
    (part(f"{NM}.bits", 0, 0x0F), r"self\.value: the bits do not keep exactly 2 of every 4"),
    (entry(BLOCK, "geometry", [0, 2]), "does not fit the matrix"),
    (entry(BLOCK, "geometry", [8, 2]), r"output\.dense: "),
    (part(f"{BITS}.bits", 0, 0), r"self\.key: the bits keep another number"),
    (part(f"{GAPS}.gaps", 3, 0), r"self\.query: the gaps"),
    (part(f"{GAPS}.gaps", 3, 255), r"self\.query: the gaps|self\.query: not as many"),
    (scale(float("nan")), r"self\.key: a scale is not a positive number"),
    (scale(float("inf")), "a scale is not a positive number"),
    (scale(0.0), "a scale is not a positive number"),
    (scale(-1.0), "a scale is not a positive number"),
    (without(f"{BITS}.values"), r"self\.key: its values are missing"),
    (without(f"{BITS}.scale"), r"self\.key: not the tensors"),
    (without(f"{BITS}.bits"), r"self\.key: not the tensors"),
    (without("classifier.bias"), r"does not fit config\.json[\s\S]*classifier\.bias"),
    (lambda p: p.head["matrices"].pop(BITS), r"does not fit config\.json"),
    (lambda p: p.head["matrices"].update(x=p.head["matrices"].pop(BITS)), "x: its values are missing"),
    (lambda p: p.head.update(version=2), "another version"),
    (lambda p: p.head.update(matrices=[["a", 1]]), "not that of a compressed model"),
    (lambda p: p.header["classifier.bias"].update(dtype="I64", shape=[1]), r"classifier\.bias does not fit"),
    (lambda p: p.header["classifier.bias"].update(dtype="F8_E4M3", shape=[8]), "of an unknown type"),
    (lambda p: p.header["classifier.weight"].update(shape=[16, 2]), r"classifier\.weight does not fit"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_contradictions(file: Path, change: Callable[[Pieces], object], message: str) -> None:
    def with_sums(pieces: Pieces) -> None:
        change(pieces)
        sums = pieces.head["crc32"]
        if all(name in sums for name in pieces.tensors):
            pieces.sum_up()

    rewrite(file, with_sums, sums=False)
    with pytest.raises(InputError, match=message) as raised:
        pyprune.load(file.parent)
    assert str(file.parent) in str(raised.value)


def test_bits_behind_the_last_column() -> None:
    weight = compress(torch.tensor([[0.0, 1.0, 2.0]]))
    assert check(weight) is weight
    weight.parts["bits"][0, 0] = 0b100010
    with pytest.raises(InputError, match="behind the last column"):
        check(weight)


def test_damage(file: Path) -> None:
    whole = file.read_bytes()
    for name in (f"{BITS}.values", "classifier.weight"):
        file.write_bytes(whole)
        rewrite(file, part(name, 5, 99), sums=False)
        with pytest.raises(InputError, match=rf"{re.escape(name)} is damaged: its checksum differs"):
            pyprune.load(file.parent)
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="damaged or cut short"):
        pyprune.load(file.parent)
    file.write_bytes(whole)
    rewrite(file, lambda pieces: pieces.head["crc32"].update(more=1))
    with pytest.raises(InputError, match="not the tensors that its files list"):
        pyprune.load(file.parent)


def test_a_block_of_nothing_makes_no_huge_matrix(file: Path) -> None:
    """One bit may stand for 2^80 weights; the model in config.json says otherwise before they are made."""

    def claim(pieces: Pieces) -> None:
        for name in [name for name in pieces.tensors if name.startswith(f"{BLOCK}.")]:
            del pieces.tensors[name], pieces.header[name]
        size = 2**40
        pieces.head["matrices"][BLOCK] = {"shape": [size] * 2, "format": "block", "geometry": [size] * 2, "kept": 0}
        for name, code, shape in (("values", "F32", [0, size, size]), ("bits", "U8", [1, 1])):
            pieces.header[f"{BLOCK}.{name}"] = {"dtype": code, "shape": shape}
            pieces.tensors[f"{BLOCK}.{name}"] = bytearray(shape[0])
        pieces.head["crc32"] = {}

    rewrite(file, claim)
    for read in (pyprune.load, load_masks):
        with pytest.raises(InputError):
            read(file.parent)


def test_configs_that_do_not_fit(file: Path) -> None:
    config = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"hidden_size": 32}, r"does not fit config\.json"),
        ({"num_hidden_layers": 10**9}, "more blocks than there are tensors"),
        ({"max_position_embeddings": 10**13}, r"far larger than the files|no BertFor"),
        ({"architectures": ["os"]}, "does not say which model class"),
        ({"num_attention_heads": 0}, r"no BertForSequenceClassification can be made|is not the config"),
        ({"num_hidden_layers": 2}, r"does not fit config\.json"),
    ]
    for changes, message in cases:
        (file.parent / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises(InputError, match=message):
            pyprune.load(file.parent)
    (file.parent / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(InputError, match="is not the config"):
        pyprune.load(file.parent)


def test_loading_keeps_matrices_compressed(file: Path) -> None:
    model = pyprune.load(file.parent)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    assert linears.keys() == SparseFiles(file.parent).layouts.keys()
    assert not model.training
    assert all(module.sparse.dtype == torch.int8 for module in linears.values())
    assert pyprune.load(file.parent, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(InputError, match="dense= and dtype= only"):
        pyprune.load(file.parent, device_map="auto")
    assert SparseFiles(file.parent).dense(GAPS) == Spec(torch.float32, (16, 16))
