# SPDX-License-Identifier: Apache-2.0
"""Which class of the model a label of the data means.

Label 0 of a data set need not be class 0 of a model (MNLI is the well-known case), so wherever both sides have
names the names decide; bare numbers are taken as they are.
"""

from __future__ import annotations

import re
from typing import Any

from pyprune.errors import InputError
from pyprune.tasks.loading import Examples

_GENERIC = re.compile(r"label_?\d+", re.IGNORECASE)


def class_names(config: Any, classes: int) -> list[str]:
    """Names of the model's classes 0 .. classes - 1 (``LABEL_0`` ... where the model was saved without names)."""
    table = {int(key): str(value) for key, value in (getattr(config, "id2label", None) or {}).items()}
    return [table.get(index, f"LABEL_{index}") for index in range(classes)]


def gold_classes(examples: Examples, config: Any, classes: int) -> list[int]:
    """Find the model's class of every example.

    Parameters
    ----------
    examples : Examples
    config : transformers.PretrainedConfig
        ``id2label`` is read.
    classes : int
        Outputs of the classifier.

    Returns
    -------
    list of int
        In ``0 .. classes - 1``.

    Raises
    ------
    InputError
        No labels, a row without one, a name the model does not know, a number it has no class for.
    """
    if examples.labels is None:
        raise InputError(
            f"{examples.source} has no labels, and evaluation needs them",
            seen="a text column only",
            hint="a .tsv, .csv, .jsonl or .parquet with a label column; if it has another name: --label COLUMN",
        )
    names = class_names(config, classes)
    generic = all(_GENERIC.fullmatch(name) for name in names)
    by_name = {_plain(name): index for index, name in enumerate(names)}
    present = {value for value in examples.labels if value is not None}
    all_numbers = all(isinstance(value, int) for value in present)

    if all_numbers and not generic and len(by_name) == classes:
        if {_plain(str(value)) for value in present} <= by_name.keys():
            # classes that are called "1", "2", ...: the numbers in the file are these names
            return _through(examples, {value: by_name[_plain(str(value))] for value in present}, names)
        stated = [_plain(name) for name in examples.label_names]
        if set(stated) == by_name.keys():
            return _through(examples, {index: by_name[name] for index, name in enumerate(stated)}, names)
    if all_numbers:
        return _through(examples, {index: index for index in range(classes)}, names)

    stated = [_plain(name) for name in examples.label_names]
    table: dict[int | str, int] = {}
    for value in present:
        name = _plain(str(value))
        if not generic and name in by_name:
            table[value] = by_name[name]
        elif isinstance(value, int) and 0 <= value < classes:
            table[value] = value
        elif name in stated and stated.index(name) < classes:
            table[value] = stated.index(name)
        elif _GENERIC.fullmatch(name.replace(" ", "_")) and generic and name.replace(" ", "_") in map(str.lower, names):
            table[value] = [known.lower() for known in names].index(name.replace(" ", "_"))
    return _through(examples, table, names)


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def _through(examples: Examples, table: dict[Any, int], names: list[str]) -> list[int]:
    assert examples.labels is not None
    lines = examples.lines or tuple(range(1, len(examples.labels) + 1))
    gold: list[int] = []
    for number, value in zip(lines, examples.labels, strict=True):
        if value is None:
            raise InputError(
                f"{examples.source}, {examples.unit} {number}: this row has no label",
                hint="evaluation needs a label in every row",
            )
        if value not in table:
            known = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
            raise InputError(
                f"{examples.source}, {examples.unit} {number}: label {value!r} is not one of the model's classes",
                seen=f"the model has {known}",
                hint="labels as these numbers or names; was the model trained on this task?",
            )
        gold.append(table[value])
    return gold
