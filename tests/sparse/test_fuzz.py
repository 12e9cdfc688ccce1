# SPDX-License-Identifier: Apache-2.0
"""Two hundred of the damaged files of ``tests/sparse/fuzz.py``, which makes as many as one likes."""

from __future__ import annotations

import os

from fuzz import fuzz


def test_damaged_files_are_refused_or_load() -> None:
    outcomes = fuzz(int(os.environ.get("FUZZ_FILES", "200")))
    assert outcomes["refused"] > 2 * outcomes["loaded"] > 0
