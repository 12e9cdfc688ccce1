# SPDX-License-Identifier: Apache-2.0
"""Files damaged at random: whatever they hold, a load ends in a model that runs or in an ``InputError``.

``python tests/sparse/fuzz.py 10000`` damages as many; a number that fails can be run again alone: ``--first 4711 1``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    here = Path(__file__).parent
    sys.path[:0] = [str(path) for path in (here, here.parent / "structured", here.parent, here.parents[1])]

import torch
from cuts import CUTS
from small import Pieces, logits, pruned
from tiny_models import build_model
from vocabularies import build, few, model_for

import pyprune
from pyprune.errors import InputError
from pyprune.sparse.storage import SparseFiles, write_files
from pyprune.structured import compact

NASTY = [-1, 0, 1, 7, 8, 255, 256, 2**31 - 1, 2**31, 2**32, 2**48, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]
_UNREAD = ("pyprune.json", "pyprune_", "token", "special")  # by what loads a model
STRANGE = [None, True, "", "dense", "bitmask", "nm", "block", "F64", [], {}, [1], 1.5, 1e308, [[[[[]]]]], "\ud800"]


def originals(folder: Path) -> list[Path]:
    """Folders with whole files of several kinds; the last has several shards."""
    kinds = (("bert", "classification", None), ("llama", "lm", "int8"), ("distilbert", "classification", "bfloat16"))
    folders = [pruned(name, head).save(folder / name, storage="sparse", values=values) for name, head, values in kinds]
    files = SparseFiles(folders[-1])
    matrices, plain = {n: files.matrix(n) for n in files.layouts}, {n: files.tensor(n) for n in files.plain}
    (folders[-1] / "pyprune.safetensors").unlink()
    write_files(folders[-1], matrices, plain, limit=4000)
    return [*folders, *_smaller(folder)]


def _smaller(folder: Path) -> list[Path]:
    """Models without some heads and neurons: plain, in shards, with compressed matrices; and two with fewer tokens."""
    one: Any = compact(build_model("bert", layers=2), CUTS["uneven heads"])
    one.save_pretrained(folder / "compact")
    two: Any = compact(build_model("distilbert"), CUTS["empty halves"])
    two.save_pretrained(folder / "shards", max_shard_size="12KB")
    name = "bert.encoder.layer.0.intermediate.dense"
    mask = one.get_submodule(name).weight.abs() > 0.3
    one.get_submodule(name).weight.data.mul_(mask)
    pyprune.PruneResult(one, {name: mask}, {"method": "kprune"}).save(folder / "both", storage="sparse")
    tokenizer = build("wordpiece")
    dense: Any = model_for(tokenizer, "bert")
    small = pyprune.trim_vocabulary(compact(dense, CUTS["whole heads"]), tokenizer, few())
    plain = pyprune.trim_vocabulary(dense, tokenizer, few())
    saved = [found.save(folder / name) for name, found in (("trimmed", small), ("tokens", plain))]
    return [folder / "compact", folder / "shards", folder / "both", *saved]


def damaged_text(data: bytes, draw: random.Random) -> bytes:
    """A JSON file that is not quite what it was."""
    kind = draw.choice(("flip", "digits", "cut", "deep", "entry", "entry", "entry"))
    if kind == "cut":
        return data[: draw.randrange(len(data))]
    if kind == "deep":
        return b"[" * 100_000
    if kind == "entry":
        value = json.loads(data)
        for _ in range(draw.choice((1, 1, 2))):
            _change_entry(value, draw)
        return json.dumps(value).encode()
    if kind == "digits":
        return _other_digits((8 + len(data)).to_bytes(8, "little") + data, draw)[8:]
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file that is not quite what it was."""
    kind = draw.choice(("flip", "flip", "cut", "length", "splice", "digits", "entry", "entry", "tensor", "tensor"))
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            # half of them in the header, which is small and where most can go wrong
            end = len(data) if draw.random() < 0.5 else 8 + int.from_bytes(data[:8], "little")
            changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == "cut":
        return data[: draw.choice((draw.randrange(len(data)), draw.randrange(64), len(data) - 1))]
    if kind == "length":
        return draw.choice(NASTY).to_bytes(40, "little", signed=True)[:8] + data[8:]
    if kind == "splice":
        start, size = draw.randrange(len(data)), draw.randrange(1, 200)
        return data[:start] + draw.choice((b"", bytes(size), draw.randbytes(size), data[:size])) + data[start + size :]
    if kind == "digits":
        return _other_digits(data, draw)
    pieces = Pieces(data)
    if kind == "entry":
        _change_entry(draw.choice([part for part in (pieces.head, pieces.header) if part]), draw)
    else:
        _change_tensor(pieces, draw)
    try:
        if draw.random() < 0.8:
            pieces.sum_up()  # so that what lies behind the checksums is reached
        return pieces.join()
    except (TypeError, ValueError, KeyError, AttributeError):  # no longer a header that can be put together
        return data


def _other_digits(data: bytes, draw: random.Random) -> bytes:
    """Another number in the header, the length of which stays."""
    end = min(8 + int.from_bytes(data[:8], "little"), len(data))
    places = [place for place in range(8, end) if 48 <= data[place] <= 57]
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3))):
        changed[draw.choice(places)] = draw.choice(b"0123456789-e.")
    return bytes(changed)


def _change_entry(value: Any, draw: random.Random) -> None:
    """One leaf or branch of a JSON value."""
    while True:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and draw.random() < 0.85:
            value = inner
            continue
        if draw.random() < 0.15:
            del value[key]
        elif isinstance(inner, int) and draw.random() < 0.7:
            value[key] = draw.choice([*NASTY, inner + 1, inner - 1, 2 * inner])
        else:
            value[key] = draw.choice(STRANGE)
        return


def _change_tensor(pieces: Pieces, draw: random.Random) -> None:
    """Bytes of a tensor, or their number."""
    name = draw.choice(list(pieces.tensors))
    data, entry = pieces.tensors[name], pieces.header[name]
    if data and draw.random() < 0.7:
        for _ in range(draw.choice((1, 1, 4))):
            data[draw.randrange(len(data))] = draw.choice((0, 255, draw.randrange(256)))
    elif len(entry["shape"]) == 1 and data:
        size = len(data) // entry["shape"][0]
        entry["shape"][0] = draw.choice((0, entry["shape"][0] - 1, entry["shape"][0] + 1))
        pieces.tensors[name] = (data + bytes(size))[: size * entry["shape"][0]]
    else:
        del pieces.tensors[name], pieces.header[name]


def attempt(folder: Path, whole: dict[str, bytes], seed: int) -> str:
    """Damage one file of a folder, load, mend it again; what came of it. Other errors than ``InputError`` pass."""
    draw = random.Random(seed)
    texts, files = ([name for name in sorted(whole) if name.endswith(".json") == text] for text in (True, False))
    # The sizes of smaller layers are in the config.
    share = 0.5 if b'"pyprune"' in whole["config.json"] else 0.06
    name = draw.choice(texts if draw.random() < share else files)
    data = (damaged_text if name in texts else damaged)(whole[name], draw)
    (folder / name).write_bytes(data)
    try:
        model = pyprune.load(folder)
        if name != "config.json":  # a config may ask for what its class cannot do
            logits(model)
        return "loaded"
    except InputError:
        return "refused"
    finally:
        (folder / name).write_bytes(whole[name])


def fuzz(count: int, first: int = 0) -> Counter[str]:
    """Damage ``count`` files and load them; how many were refused, and how many did not mind."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made:
        folders = originals(Path(made))
        files = [
            {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(_UNREAD)}
            for folder in folders
        ]
        for seed in range(first, first + count):
            number = seed % len(folders)
            try:
                outcomes[attempt(folders[number], files[number], seed)] += 1
            except Exception as error:
                raise AssertionError(f"file {seed}: {type(error).__name__}: {error}") from error
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(dict(fuzz(arguments.count, arguments.first)))
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
