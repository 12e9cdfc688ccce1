# SPDX-License-Identifier: Apache-2.0
"""What a run on heads and neurons will do, said before it does it: the budget exactly, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pyprune.budgets import UnitCosts, allowance
from pyprune.errors import InputError
from pyprune.latency import LatencyCosts
from pyprune.methods.calibration import Calibration
from pyprune.methods.plan import Memory, forward_bytes, fused, statistics_bytes
from pyprune.methods.unit_request import UnitRequest
from pyprune.models import Adapter
from pyprune.models.sublayers import KINDS, SubLayer
from pyprune.units import Units

NAMES = {"flops": "FLOPs", "macs": "multiply-adds", "parameters": "parameters", "latency": "nanoseconds"}


def asked(measure: str, share: float) -> str:
    """A target in words that cannot be read the other way round.

    >>> asked("flops", 0.4)
    'at most 40 % of the FLOPs of heads and neurons left, at least 60 % removed'
    """
    if measure == "latency":
        return f"at least {1 / share:.3g} times as fast, at most {100 * share:.3g} % of the time of a call left"
    left, gone = (f"{100 * part:g} %" for part in (share, 1 - share))
    return f"at most {left} of the {NAMES[measure]} of heads and neurons left, at least {gone} removed"


@dataclass(frozen=True)
class UnitPlan:
    """Budget and memory of a run.

    Attributes
    ----------
    method : str
    budget : dict
        ``measure``, ``share`` that may be left, cost of the ``dense`` encoder's units, what is ``allowed``, and of one
        ``head`` and one ``neuron``.
    tokens : float
        Mean tokens of a sentence, at which operations are counted.
    layers : tuple of dict
        ``name``, ``kind`` and ``units`` of each half of a block.
    memory : Memory
    data : dict
        :meth:`Calibration.to_dict`.
    notes : tuple of str
        What a person should know before starting.
    """

    method: str
    budget: dict[str, Any]
    tokens: float
    layers: tuple[dict[str, Any], ...]
    memory: Memory
    data: dict[str, Any]
    notes: tuple[str, ...]

    def describe(self) -> list[str]:
        """A few lines for a person."""
        budget = self.budget
        heads, neurons = (sum(layer["units"] for layer in self.layers if layer["kind"] == kind) for kind in KINDS)
        return [
            f"{self.method}: {asked(budget['measure'], budget['share'])}",
            f"budget: {budget['allowed']:,} of {budget['dense']:,} {NAMES[budget['measure']]}, a head costs "
            f"{budget['head']:,}, a neuron {budget['neuron']:,}; there are {heads:,} heads and {neurons:,} neurons",
            f"calibration: {self.data['sentences']:,} sentences, {self.data['tokens']:,} tokens, "
            f"{self.tokens:.1f} a sentence",
            self.memory.describe(),
            *self.notes,
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = asdict(self) | {"layers": list(self.layers), "notes": list(self.notes)}
        return found | {"memory": self.memory.to_dict()}


def budget_of(costs: UnitCosts | LatencyCosts, dense: Units, share: float) -> dict[str, Any]:
    """The budget as a report has it; of a latency also the table.

    Raises
    ------
    InputError
        What is left without any units takes longer.
    """
    total = costs.total(dense)
    if allowance(share, total) < costs.fixed:
        raise InputError(
            "a model without any heads and neurons would not be fast enough",
            asked=f"{1 / share:.3g} times as fast",
            seen=f"{total / costs.fixed:.3g} times as fast, its embeddings, norms and head remain",
        )
    table = {"table": costs.table.to_json()} if isinstance(costs, LatencyCosts) and costs.table is not None else {}
    return {
        "measure": costs.measure,
        "share": share,
        "dense": total,
        "allowed": allowance(share, total),
        "head": costs.head,
        "neuron": costs.neuron,
        **table,
    }


def make_unit_plan(
    model: nn.Module,
    adapter: Adapter,
    request: UnitRequest,
    calibration: Calibration,
    parts: Sequence[SubLayer],
    dense: Units,
    costs: UnitCosts | LatencyCosts,
    *,
    inplace: bool,
) -> UnitPlan:
    """Count what may be left.

    Parameters
    ----------
    model, adapter, request, calibration
    parts : sequence of SubLayer
        Of the model.
    dense : Units
        All there are.
    costs : UnitCosts or LatencyCosts
    inplace : bool
        No copy of the model is made.
    """
    notes = list(calibration.notes)
    if request.method.resumes and calibration.tokens < dense.neurons:
        notes.append(
            f"{calibration.tokens} tokens are fewer than the {dense.neurons} neurons of a layer: what is left of it is "
            "fitted to few tokens, held by the ridge alone"
        )
    return UnitPlan(
        method=request.method.name,
        budget=budget_of(costs, dense, request.target.share),
        tokens=calibration.tokens / calibration.sentences,
        layers=tuple({"name": part.name, "kind": part.kind, "units": part.units} for part in parts),
        memory=estimate(model, adapter, request, calibration, inplace=inplace),
        data=calibration.to_dict(),
        notes=tuple(notes),
    )


def estimate(
    model: nn.Module, adapter: Adapter, request: UnitRequest, calibration: Calibration, *, inplace: bool
) -> Memory:
    """Bytes a run needs beyond the model as given; meant to be an upper bound of a loose kind."""
    config: Any = model.config
    blocks = adapter.blocks(model)
    whole = 4 * sum(p.numel() for p in model.parameters())
    twin = 4 * sum(p.numel() for p in blocks[0].parameters())
    copies = (0 if inplace else whole) + (twin if request.method.resumes else whole)
    if request.method.name == "unit-magnitude":
        return Memory(model=copies, streams=0, forward=0, statistics=0, solver=0, disk=0)
    copies += twin * len(blocks)  # weights the other way round, for passes through all blocks
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    inner = adapter.linears(blocks[0])[adapter.groups[3][0]].in_features
    kept = 0
    for batch in calibration.batches:
        sentences, tokens = batch["input_ids"].shape
        # What a backward pass needs of each block: inputs of gates, norms, attention and activation, and the scores.
        scores = 0 if fused(config) else 3 * sentences * heads * tokens * tokens
        kept = max(kept, len(blocks) * (sentences * tokens * (10 * hidden + 3 * inner) + scores))
    gradients = 4 * len(calibration.batches) * len(blocks) * (hidden + inner)
    pairs = 3 * 8 * inner * inner
    return Memory(
        model=copies,
        streams=4 * 4 * calibration.padded * hidden,
        forward=forward_bytes(calibration, config, inner) + 4 * kept,
        statistics=statistics_bytes(inner, hidden) + (0 if request.method.resumes else gradients),
        solver=8 * (7 * inner * inner + 8 * inner * hidden) if request.method.resumes else pairs,
        disk=0,
    )
