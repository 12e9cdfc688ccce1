# SPDX-License-Identifier: Apache-2.0
"""Labels of calibration data, for the one published method that takes its loss against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.tasks.columns import LABELS
from pyprune.tasks.labels import gold_classes
from pyprune.tasks.loading import Examples

# Of ready batches: classes or numbers; starts and ends of answers.
BATCHED = (("labels",), ("start_positions", "end_positions"))
_NONE = "the calibration data has no labels"
_HINT = "labels='drawn' needs none; or data with a label column (pyprune.tasks.load_texts), or batches with labels"


def row_labels(data: Any, model: Any, kind: str) -> list[float] | None:
    """The label of every row of texts; None of ready batches, which have their own.

    Parameters
    ----------
    data
        As for :func:`pyprune.methods.calibration.gather`.
    model : transformers.PreTrainedModel
        Its config says what a name means.
    kind : {"classification", "regression", "answers"}
        Classes, numbers, or starts and ends, which only batches have.

    Raises
    ------
    InputError
        Texts without labels, or labels that the model does not know.
    """
    if hasattr(data, "column_names") and hasattr(data, "__getitem__"):
        examples = _of_dataset(data)
    elif hasattr(data, "texts"):
        examples = data
    else:
        first = next(iter(data), None) if isinstance(data, (list, tuple)) else None
        if isinstance(first, (str, tuple, list)):
            raise InputError(_NONE, seen="texts alone", hint=_HINT)
        return None
    if kind == "answers":
        raise InputError(
            "texts do not say at which token an answer starts", hint=f"batches with {', '.join(BATCHED[1])}"
        )
    if examples.labels is None:
        raise InputError(f"{examples.source} has no labels", hint=_HINT)
    if kind == "classification":
        return [float(label) for label in gold_classes(examples, model.config, int(model.config.num_labels))]
    try:
        return [float("" if label is None else label) for label in examples.labels]
    except ValueError:
        raise InputError(f"{examples.source}: a label is not a number", hint=_HINT) from None


def batch_labels(batch: Mapping[str, Any], kind: str) -> tuple[Tensor, ...]:
    """Labels of one ready batch, of a kind as above.

    Raises
    ------
    InputError
        There are none, or not one a row.
    """
    names, rows = BATCHED[kind == "answers"], len(batch["input_ids"])
    if not all(name in batch for name in names):
        raise InputError(
            _NONE, seen=f"a batch with {', '.join(map(str, batch))}", hint=f"batches with {', '.join(names)}"
        )
    found = tuple(torch.as_tensor(batch[name]) for name in names)
    if any(len(label) != rows for label in found):
        raise InputError("labels of a batch are one a row", asked=str(rows), seen=str([len(label) for label in found]))
    return tuple(label.float() if kind == "regression" else label.long() for label in found)


def _of_dataset(data: Any) -> Examples:
    column = next((name for name in LABELS if name in data.column_names), None)
    if column is None:
        raise InputError(_NONE, seen=f"columns {', '.join(data.column_names)}", hint=_HINT)
    feature = getattr(data, "features", {}).get(column)
    names = tuple(getattr(feature, "names", None) or ())
    labels = tuple(data[column])
    return Examples(("",) * len(labels), None, labels, "the data set", "", unit="row", label_names=names)
