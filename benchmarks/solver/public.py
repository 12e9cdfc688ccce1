# SPDX-License-Identifier: Apache-2.0
"""Runs public solvers, from checkouts the user names, on the very same problems.

Nothing of theirs is here: their files are imported at run time, without `import` of the programs around them, and
given a gram in place of calibration data. What they need of a GPU is answered by the CPU (`torch.cuda.synchronize`
does nothing, a hard-coded ``cuda:0`` is read as ``cpu``), what they print is kept as notes. Their settings are their
defaults.

| flag | class or function | its input |
|---|---|---|
| `--sparsegpt DIR` | `SparseGPT.fasterprune` of sparsegpt.py (arXiv 2301.00774) | `H = 2·gram`, float32 |
| `--alps DIR` | `ALPS_prune.ALPS_admm` of alps.py (arXiv 2406.07831) | `XtX = tokens·gram`, float32 |
| `--admm DIR` | `AdmmPruner.fasterprune` of lib/admm.py (arXiv 2401.02938) | `XX = tokens·gram`, float32 |
| `--obc DIR` | `TrueOBS` of trueobs.py (arXiv 2208.11580) | `H = 2·gram`, float64 |
| `--wanda DIR` | `prune_wanda` of lib/prune.py (arXiv 2306.11695) | `scaler_row = diag(gram)`, float32 |
| `--llmcompressor DIR` | `sparsify_weight` of sgpt_sparsify.py or sgpt_base.py | `H = 2·gram`, float32 |
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import NM
from pyprune.errors import InputError
from pyprune.patterns import Pattern

# ALPS and ADMM take a sum over tokens where the others take a mean; both normalise it away, up to 1e-8.
TOKENS = 16384
LONGEST_TRACE = 4 << 30  # bytes: TrueOBS keeps every row's weights after every removal


@dataclass(frozen=True)
class PublicSolver:
    """One public solver.

    Attributes
    ----------
    name : str
        Of the flag.
    file : Path
        What was run.
    prepare : callable
        From weight ``[out, in]`` float32, gram ``[in, in]`` float64 and pattern to a callable that solves once and
        returns the pruned weight. Copies are made here, not in the callable.
    refuses : callable
        Why it cannot do a pattern on a shape, or None.
    """

    name: str
    file: Path
    prepare: Callable[[Tensor, Tensor, Pattern], Callable[[], Tensor]]
    refuses: Callable[[Pattern, int, int], str | None]


@dataclass
class Notes:
    """What public code printed while it ran."""

    text: str = ""

    def warnings(self) -> tuple[str, ...]:
        """The distinct lines without a number in them, which leaves out times and losses."""
        lines = (line.strip() for line in self.text.splitlines())
        return tuple(dict.fromkeys(line for line in lines if line and not re.search(r"\d", line)))


# Their world


@contextlib.contextmanager
def harmless(notes: Notes | None = None) -> Iterator[None]:
    """On a machine without a GPU `torch.cuda` does nothing, and prints are kept instead of shown."""
    own = {name: getattr(torch.cuda, name) for name in ("synchronize", "empty_cache")}
    out = io.StringIO()
    try:
        for name in own:
            setattr(torch.cuda, name, lambda *args, **options: None)
        with contextlib.redirect_stdout(out), torch.no_grad():
            yield
    finally:
        for name, value in own.items():
            setattr(torch.cuda, name, value)
        if notes is not None:
            notes.text += out.getvalue()


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Their neighbours can be imported; afterwards none of those modules is left to be taken for another's."""
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
            if name not in before and origin and Path(origin).resolve().is_relative_to(folder):
                del sys.modules[name]


def _load(folder: Path, file: str, *, edit: Callable[[str], str] = lambda text: text) -> types.ModuleType:
    """One file of a checkout as a module, its text changed in memory by `edit`."""
    folder = folder.expanduser().resolve()
    path = folder / file
    if not path.is_file():
        raise InputError(f"{folder} has no {file}", hint="the folder of a checkout, see the table in public.py")
    spec = importlib.util.spec_from_loader(f"public_{path.stem}_{abs(hash(path))}", loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    with _beside(folder), harmless(), _explained(path):
        exec(compile(edit(path.read_text(encoding="utf-8")), str(path), "exec"), module.__dict__)
    return module


def _load_in_package(folder: Path, name: str) -> types.ModuleType:
    """A module with relative imports, `lib.prune` for one, through its package."""
    folder = folder.expanduser().resolve()
    path = folder / (name.replace(".", "/") + ".py")
    if not path.is_file():
        raise InputError(f"{folder} has no {path.relative_to(folder)}", hint="the folder of a checkout, see public.py")
    with _beside(folder), harmless(), _explained(path):
        return importlib.import_module(name)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"{path} cannot be imported", seen=f"{type(error).__name__}: {error}", hint="install what it needs"
        ) from None


def _layer(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.detach().clone().float()
    return layer


def _weight(layer: nn.Linear) -> Tensor:
    return layer.weight.detach()


def _groups(pattern: Pattern) -> tuple[int, int]:
    """Removed weights of a group and its size; 0, 0 where the pattern is unstructured."""
    return (pattern.of - pattern.keep, pattern.of) if isinstance(pattern, NM) else (0, 0)


def _solver(
    name: str,
    module: types.ModuleType,
    prepare: Callable[[Tensor, Tensor, Pattern], Callable[[], Tensor]],
    refuses: Callable[[Pattern, int, int], str | None] = lambda pattern, rows, columns: None,
) -> PublicSolver:
    return PublicSolver(name, Path(str(module.__file__)), prepare, refuses)


# One function a checkout


def sparsegpt(folder: Path) -> PublicSolver:
    """SparseGPT's own `fasterprune`."""
    module = _load(folder, "sparsegpt.py")

    def prepare(weight: Tensor, gram: Tensor, pattern: Pattern) -> Callable[[], Tensor]:
        solver = module.SparseGPT(_layer(weight))
        solver.H, solver.nsamples = (2 * gram).float(), TOKENS
        removed, group = _groups(pattern)

        def solve() -> Tensor:
            solver.fasterprune(pattern.sparsity, prunen=removed, prunem=group)
            return _weight(solver.layer)

        return solve

    return _solver("sparsegpt", module, prepare)


def alps(folder: Path) -> PublicSolver:
    """ALPS with its own schedule and stop; its device is part of its text."""
    module = _load(folder, "alps.py", edit=lambda text: text.replace("cuda:0", "cpu"))

    def prepare(weight: Tensor, gram: Tensor, pattern: Pattern) -> Callable[[], Tensor]:
        solver = module.ALPS_prune(_layer(weight), 1, TOKENS)
        solver.XtX = (TOKENS * gram).float()
        keep = {"nm_n": pattern.keep, "nm_m": pattern.of} if isinstance(pattern, NM) else {}

        def solve() -> Tensor:
            solver.ALPS_admm(pattern.sparsity, **keep)
            return _weight(solver.layer)

        return solve

    return _solver("alps", module, prepare)


def admm(folder: Path) -> PublicSolver:
    """ADMM by Boža: 20 iterations, mask from the dual variable, no refit."""
    module = _load(folder, "lib/admm.py")

    def refuses(pattern: Pattern, rows: int, columns: int) -> str | None:
        return "only 2:4 of all N:M" if isinstance(pattern, NM) and (pattern.keep, pattern.of) != (2, 4) else None

    def prepare(weight: Tensor, gram: Tensor, pattern: Pattern) -> Callable[[], Tensor]:
        solver = module.AdmmPruner(_layer(weight))
        solver.XX = (TOKENS * gram).float()
        removed, group = _groups(pattern)

        def solve() -> Tensor:
            solver.fasterprune(pattern.sparsity, prune_n=removed, prune_m=group)
            return _weight(solver.layer)

        return solve

    return _solver("admm", module, prepare, refuses)


def obc(folder: Path) -> PublicSolver:
    """TrueOBS: rows one weight at a time, 32 rows together, then the budget over all rows by their traces."""
    module = _load(folder, "trueobs.py")

    def refuses(pattern: Pattern, rows: int, columns: int) -> str | None:
        trace = 4 * rows * (columns + 1) * columns
        if not isinstance(pattern, NM) and trace > LONGEST_TRACE:
            return f"its traces would take {trace / 2**30:.0f} GiB"
        return None

    def prepare(weight: Tensor, gram: Tensor, pattern: Pattern) -> Callable[[], Tensor]:
        solver = module.TrueOBS(_layer(weight))
        solver.H, solver.nsamples = 2 * gram.double(), TOKENS
        removed, group = _groups(pattern)

        def solve() -> Tensor:
            if group:
                solver.nmprune(removed, group)
                return _weight(solver.layer)
            solver.prepare_unstr()
            found: Tensor = solver.prune_unstr([pattern.sparsity])[0]
            return found

        return solve

    return _solver("obc", module, prepare, refuses)


def wanda(folder: Path) -> PublicSolver:
    """Wanda's loop over a model, on a model of one layer and no calibration data."""
    module: Any = _load_in_package(folder, "lib.prune")

    def prepare(weight: Tensor, gram: Tensor, pattern: Pattern) -> Callable[[], Tensor]:
        layer = _layer(weight)
        block = nn.Module()
        block.layer = layer
        model = types.SimpleNamespace(
            config=types.SimpleNamespace(use_cache=False),
            model=types.SimpleNamespace(layers=[block]),
            hf_device_map={},
        )
        norms = types.SimpleNamespace(scaler_row=gram.diagonal().float(), add_batch=lambda inp, out: None)
        settings = types.SimpleNamespace(nsamples=0, seed=0, use_variant=False, sparsity_ratio=pattern.sparsity)
        removed, group = _groups(pattern)
        model.seqlen = 0

        def solve() -> Tensor:
            # Looked up when called: the last of several prepared problems must not decide.
            module.get_loaders = lambda *args, **options: (None, None)
            module.prepare_calibration_input = lambda *args, **options: (None, None, None, None)
            module.WrappedGPT = lambda *args, **options: norms
            module.prune_wanda(settings, model, None, torch.device("cpu"), prune_n=removed, prune_m=group)
            return _weight(layer)

        return solve

    return _solver("wanda", module, prepare)


def llmcompressor(folder: Path) -> PublicSolver:
    """SparseGPT as llm-compressor has it: a function of one module and its Hessian."""
    inside = Path("src/llmcompressor/modifiers/pruning/sparsegpt")
    files = [inside / name for name in ("sgpt_sparsify.py", "sgpt_base.py")]
    file = next((entry for entry in files if (folder.expanduser() / entry).is_file()), files[-1])
    with _without_loguru():
        module = _load(folder, str(file))

    def prepare(weight: Tensor, gram: Tensor, pattern: Pattern) -> Callable[[], Tensor]:
        layer = _layer(weight)
        hessians = {layer: (2 * gram).float()}
        removed, group = _groups(pattern)

        def solve() -> Tensor:
            _, found = module.sparsify_weight(
                module=layer,
                hessians_dict=hessians,
                sparsity=pattern.sparsity,
                prune_n=removed,
                prune_m=group,
                block_size=128,
                dampening_frac=0.01,
                preserve_sparsity_mask=False,
            )
            result: Tensor = found
            return result

        return solve

    return _solver("llmcompressor", module, prepare)


@contextlib.contextmanager
def _without_loguru() -> Iterator[None]:
    """Where loguru is not installed its warnings are printed, and so become notes."""
    if importlib.util.find_spec("loguru") is not None:
        yield
        return
    stand_in = types.ModuleType("loguru")
    stand_in.logger = types.SimpleNamespace(warning=print, info=print, debug=lambda *args: None)  # type: ignore[attr-defined]
    sys.modules["loguru"] = stand_in
    try:
        yield
    finally:
        del sys.modules["loguru"]


LOADERS = {
    "sparsegpt": sparsegpt,
    "alps": alps,
    "admm": admm,
    "obc": obc,
    "wanda": wanda,
    "llmcompressor": llmcompressor,
}


# As flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each public solver."""
    group = parser.add_argument_group("public solvers", "folders of checkouts; without them, torch versions of ours")
    for name, load in LOADERS.items():
        group.add_argument(f"--{name}", type=Path, metavar="DIR", help=(load.__doc__ or "").strip().splitlines()[0])


def given(options: argparse.Namespace) -> dict[str, PublicSolver]:
    """The public solvers whose checkouts were named, by flag.

    Raises
    ------
    InputError
        A folder without the file, or a file that cannot be imported.
    """
    folders = {name: getattr(options, name) for name in LOADERS}
    return {name: LOADERS[name](folder) for name, folder in folders.items() if folder is not None}
