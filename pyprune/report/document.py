# SPDX-License-Identifier: Apache-2.0
"""What a report knows, in checked types: whatever was read is a finite number, printable text, or not there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Share:
    """A fraction with its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Layer:
    """One pruned matrix."""

    name: str
    rows: int | None
    cols: int | None
    kept: int | None
    error: float | None


@dataclass(frozen=True)
class Left:
    """Heads and neurons that are left of one layer.

    Attributes
    ----------
    heads : tuple of float
        For each head of the dense layer the share of its channels that is left; 0: it is gone.
    neurons, of_neurons : int
        How many, of how many.
    named : bool
        Whether these are the heads that are left, or only as many.
    """

    heads: tuple[float, ...]
    neurons: int
    of_neurons: int
    named: bool = True

    @property
    def kept_heads(self) -> int:
        """Heads of which something is left."""
        return sum(share > 0 for share in self.heads)


@dataclass(frozen=True)
class Judged:
    """An evaluation without an attack; ``accuracy`` is None for a language model, and exact matches for answers."""

    metric: str
    value: float | None
    accuracy: Share | None
    total: int | None
    source: str | None
    sha256: str | None
    accuracy_is: str = "accuracy"


@dataclass(frozen=True)
class Attack:
    """An evaluation under attack: accuracy on the same rows, accuracy under attack (Aua), success rate (Asr).

    ``sha256`` is that of the rows, ``model_sha256`` that of the model; ``resources`` says what each is, by name.
    """

    recipe: str | None
    accuracy: Share | None
    aua: Share | None
    asr: Share | None
    queries: float | None
    words_changed: float | None
    total: int | None
    skipped: int | None
    seed: int | None
    sha256: str | None
    model_sha256: str | None
    resources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """One folder.

    Attributes
    ----------
    name : str
        Short, and unlike that of any other.
    path : str
    kind : {"pruned", "trimmed", "average", "dense", "records"}
        "trimmed": nothing but tokens are gone; "records": no model, only what was measured of one.
    origin : str, optional
        Where the model that was pruned lay.
    settings, versions, data : dict of str to str
        As text.
    disk : dict of str to int
        Bytes of ``folder`` and ``weights``.
    densities : dict of str to ndarray
        By name of the matrix: the share kept in each cell of a small grid (:mod:`pyprune.report.maps`).
    units : tuple of Left
        By layer, where heads and neurons are cut.
    left : dict of str to float
        The share of operations or parameters that is left, by how they are counted.
    vocabulary : dict of str to int
        ``tokens``, ``parameters`` and ``bytes``, each ``before`` and ``after``, where tokens are cut.
    embeddings : dict of str to int
        ``rank`` of word embeddings that became a product, their parameters ``before`` and ``after``.
    stages : dict of str to float
        Seconds by stage of the pruning.
    missing : tuple of str
        What could be there and is not.
    problems : tuple of str
        What is there and cannot be read or believed.
    """

    name: str
    path: str
    kind: str
    method: str | None = None
    pattern: str | None = None
    origin: str | None = None
    storage: str | None = None
    sparsity: dict[str, float] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    mean_error: float | None = None
    disk: dict[str, int] = field(default_factory=dict)
    densities: dict[str, Any] = field(default_factory=dict, repr=False)
    judged: Judged | None = None
    judged_dense: Judged | None = None
    attack: Attack | None = None
    seconds: float | None = None
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    units: tuple[Left, ...] = ()
    left: dict[str, float] = field(default_factory=dict)
    vocabulary: dict[str, int] = field(default_factory=dict)
    embeddings: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """One candidate in one case of ``pyprune bench model``; ``gain``: times as fast as the case's first dense one."""

    batch: str
    length: str
    candidate: str
    ours: bool
    median: float | None
    p90: float | None
    gain: float | None
    tokens_per_second: float | None
    status: str


@dataclass(frozen=True)
class Bench:
    """A record of ``pyprune bench model``."""

    source: str
    dense: str | None
    pruned: str | None
    machine: str
    rows: tuple[Latency, ...]
    memory: dict[str, int]
    verdict: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """Everything a report shows.

    Attributes
    ----------
    pyprune, created : str
        Version, and the day in UTC.
    models : tuple of Model
    benches : tuple of Bench
    notes : tuple of str
        What keeps models from being compared.
    """

    pyprune: str
    created: str
    models: tuple[Model, ...]
    benches: tuple[Bench, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the grids of the pictures."""
        told = asdict(self)
        for model in told["models"]:
            del model["densities"]
        return told
