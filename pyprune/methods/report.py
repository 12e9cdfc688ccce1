# SPDX-License-Identifier: Apache-2.0
"""The report of a finished run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pyprune import backends
from pyprune.methods import accounting
from pyprune.methods.calibration import Calibration
from pyprune.methods.driver import Outcome
from pyprune.methods.plan import Plan
from pyprune.methods.request import Request
from pyprune.models import Adapter


class Clock:
    """When a run began, how long it prepared, and the memory of the process before it worked."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.prepared = 0.0
        self.resident: int | None = None

    def ready(self) -> None:
        """Preparation is over."""
        self.prepared = time.perf_counter() - self.begin
        self.resident = accounting.resident_bytes()

    def seconds(self, stages: Mapping[str, float]) -> dict[str, float]:
        """Of the preparation, of stages, and in all."""
        return {"prepare": self.prepared, **stages, "total": time.perf_counter() - self.begin}

    def memory(self, device: torch.device) -> dict[str, int | None]:
        """Bytes before the work, and at most."""
        return {
            "resident_before": self.resident,
            # Of the process so far: larger than this run's own where something before it needed more.
            "peak": accounting.peak_bytes(),
            "cuda_peak": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }


def make_report(
    request: Request,
    plan: Plan,
    calibration: Calibration,
    outcome: Outcome,
    model: nn.Module,
    adapter: Adapter,
    *,
    sha256: str,
    device: torch.device,
    choices: dict[str, Any],
    clock: Clock,
) -> dict[str, Any]:
    """JSON-able; :class:`pyprune.PruneResult` says what is in it.

    Parameters
    ----------
    request, plan, calibration, outcome
    model, adapter
        The pruned model; only names and shapes are read.
    sha256 : str
        Of the model as given.
    device : torch.device
        Where it ran.
    choices : dict
        Settings beyond those of the request, for ``settings``.
    clock : Clock
    """
    records = outcome.records
    removed = sum(record["rows"] * record["cols"] - record["kept"] for record in records)
    mean = calibration.tokens / max(calibration.sentences, 1)
    counts = accounting.count(model, adapter, removed, outcome.units, mean)
    weights = sum(record["rows"] * record["cols"] for record in records)
    settings = request.settings(calibration.batches)
    del settings["batches"], settings["seed"]
    return {
        "method": plan.method,
        "solver": plan.solver,
        "pattern": plan.pattern,
        **circumstances(model, adapter, sha256=sha256, device=device),
        "data": calibration.to_dict(),
        "layers": records,
        "mean_error": sum(record["error"] for record in records) / len(records),
        "weighted_error": sum(record["error"] * record["rows"] * record["cols"] for record in records) / weights,
        "sparsity": {name: entry["removed"] / entry["total"] for name, entry in counts.items()},
        "counts": counts,
        "seconds": clock.seconds(outcome.seconds),
        "resumed_blocks": outcome.resumed,
        "notes": list(plan.notes),
        "seed": request.seed,
        "settings": {**settings, "sparsity": request.pattern.sparsity, **choices},
        "memory": {
            "planned": plan.memory.total,
            "planned_disk": plan.memory.disk,
            **clock.memory(device),
        },
    }


def circumstances(model: nn.Module, adapter: Adapter, *, sha256: str, device: torch.device) -> dict[str, Any]:
    """Versions, threads, device and model of a run, for its report.

    Parameters
    ----------
    model, adapter
        Only names are read.
    sha256 : str
        Of the model as given.
    device : torch.device
        Where it ran.
    """
    config: Any = model.config
    found = accounting.versions()
    return {
        "pyprune": found["pyprune"],
        "versions": found,
        "threads": {"torch": torch.get_num_threads(), "kernels": backends.threads()},
        "device": str(device),
        "model": {
            "class": type(model).__name__,
            "family": adapter.family,
            "name": str(getattr(config, "_name_or_path", "") or ""),
            "sha256": sha256,
        },
    }
