# SPDX-License-Identifier: Apache-2.0
"""Data in, numbers out: texts and labels from files or the hub, and the evaluation of a classifier on them."""

from __future__ import annotations

from pyprune.tasks.evaluate import Evaluation, evaluate
from pyprune.tasks.loading import Examples, load_texts
from pyprune.tasks.registry import TASKS, Task, find_task

__all__ = ["TASKS", "Evaluation", "Examples", "Task", "evaluate", "find_task", "load_texts"]
