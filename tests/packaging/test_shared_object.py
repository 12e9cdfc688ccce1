# SPDX-License-Identifier: Apache-2.0
"""The compiled extension exports one symbol and links neither torch nor a CUDA runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyprune import backends

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")


def _output(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def library() -> Path:
    return Path(str(backends.extension().__file__))


def test_one_exported_symbol(library: Path) -> None:
    lines = _output("nm", "-D", "--defined-only", library).splitlines()
    assert [line.split()[-1] for line in lines] == ["PyInit__C"]


def test_linked_libraries(library: Path) -> None:
    needed = {
        line.split("[")[1].rstrip("]") for line in _output("readelf", "-d", library).splitlines() if "(NEEDED)" in line
    }
    assert needed
    known = ("libgomp", "libomp", "libstdc++", "libgcc_s", "libm.", "libc.", "libpthread", "libdl", "librt", "ld-linux")
    assert not [name for name in needed if not name.startswith(known)]
