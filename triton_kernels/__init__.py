# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one file per op, installed as `pyprune.triton_kernels`.

Nothing is imported here: each file imports Triton itself, so that `import pyprune` works without it.
Every kernel brings its elements to float32 right after loading, chooses tiles by a plain function of
shape and architecture (no autotuning, so equal calls give equal bits) and runs under
`TRITON_INTERPRET=1` on CPU tensors.
"""
