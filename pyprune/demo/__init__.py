# SPDX-License-Identifier: Apache-2.0
"""The demo: a real fine-tuned model and real sentences that come with pyprune, pruned and judged."""

from __future__ import annotations

from pyprune.demo.files import model_folder, test_file, train_file
from pyprune.demo.story import METHODS, SPARSITIES, conclude, run_demo

__all__ = ["METHODS", "SPARSITIES", "conclude", "model_folder", "run_demo", "test_file", "train_file"]
