# SPDX-License-Identifier: Apache-2.0
"""Folders of compact models that transformers loads alone, by a Python file that lies in them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pyprune.errors import InputError
from pyprune.files import REPORT, whole_folder
from pyprune.models import adapter_for
from pyprune.models.weights import STEM, Shards
from pyprune.sparse.loading import empty_model
from pyprune.sparse.storage import is_sparse
from pyprune.structured.modelling import MODULE, auto_map, modelling_text
from pyprune.structured.shapes import is_compact
from pyprune.version import __version__


def with_modelling(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Copy the folder of a compact model, together with the file that transformers needs for it.

    ``AutoModelForSequenceClassification.from_pretrained(output, trust_remote_code=True)``, and the same with other
    heads, then works where this package is not installed. :func:`pyprune.load` loads the folder as before and never
    runs the file.

    Parameters
    ----------
    path : str or Path
        Folder of a compact model.
    output : str or Path
        Another folder.

    Returns
    -------
    Path
        The new folder, with ``modeling_compact.py`` and an ``auto_map`` in its ``config.json``.

    Raises
    ------
    InputError
        The folder does not hold a compact model, or its files are damaged.
    """
    folder, target = Path(path).expanduser(), Path(output).expanduser().absolute()
    if target.resolve() == folder.resolve():
        raise InputError("the output is the folder of the model itself", hint="another folder")
    if not is_compact(folder) or is_sparse(folder):
        raise InputError(
            f"{folder} holds no compact model with plain weights",
            hint="for a model with zeros --dense, which transformers loads as its own",
        )
    shards = Shards(folder, STEM)
    model = empty_model(shards)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = auto_map(type(model))
    with whole_folder(target, shards.bytes) as part:
        for file in folder.iterdir():
            if file.is_file():
                shutil.copyfile(file, part / file.name)
        text = modelling_text(adapter_for(model), type(model), __version__)
        (part / f"{MODULE}.py").write_text(text, encoding="utf-8")
        (part / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if not (part / REPORT).is_file():
            (part / REPORT).write_text(json.dumps({"pyprune": __version__}) + "\n", encoding="utf-8")
    return target
