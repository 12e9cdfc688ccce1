# SPDX-License-Identifier: Apache-2.0
"""Data in, numbers out: texts and labels from files or the hub, and the evaluation of models on them."""

from __future__ import annotations

from pyprune.tasks.evaluate import Evaluation, evaluate
from pyprune.tasks.loading import Examples, load_texts, shared_rows, without_rows
from pyprune.tasks.perplexity import Perplexity, is_language_model, perplexity
from pyprune.tasks.registry import TASKS, Task, find_task

__all__ = [
    "TASKS",
    "Evaluation",
    "Examples",
    "Perplexity",
    "Task",
    "evaluate",
    "find_task",
    "is_language_model",
    "load_texts",
    "perplexity",
    "shared_rows",
    "without_rows",
]
