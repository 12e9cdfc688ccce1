# SPDX-License-Identifier: Apache-2.0
"""Build of the compiled extension by CMake; everything else is in pyproject.toml.

Never imports torch: ``pip install .`` works with build isolation. Environment variables read here:
``PYPRUNE_CUDA`` (AUTO, ON, OFF), ``PYPRUNE_CUDA_ARCHS``, ``PYPRUNE_BUILD_TYPE``, ``MAX_JOBS``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure and build CMakeLists.txt, and put ``_C`` where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(work),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('PYPRUNE_BUILD_TYPE', 'Release')}",
            f"-DPYPRUNE_CUDA={os.environ.get('PYPRUNE_CUDA', 'AUTO')}",
        ]
        if os.environ.get("PYPRUNE_CUDA_ARCHS"):
            configure.append(f"-DPYPRUNE_CUDA_ARCHS={os.environ['PYPRUNE_CUDA_ARCHS']}")
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(work), "--parallel", jobs], check=True)


setup(ext_modules=[Extension("pyprune._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
