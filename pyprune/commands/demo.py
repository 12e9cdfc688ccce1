# SPDX-License-Identifier: Apache-2.0
"""``pyprune demo``."""
import argparse
from typing import Any
def add(commands: Any) -> None:
    pass
def run(arguments: argparse.Namespace) -> int:
    return 0
