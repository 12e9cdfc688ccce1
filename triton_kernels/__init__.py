# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one file per op, installed as `pyprune.triton_kernels`.

Nothing is imported here: each file imports Triton itself, so that `import pyprune` works without it.
Every kernel chooses tiles by a plain function of shape and architecture (no autotuning, so equal calls give
equal bits) and runs under `TRITON_INTERPRET=1` on CPU tensors. The interpreter computes with bfloat16 wrongly: elements
are brought to float32 right after loading there, on a GPU where tensor cores do not take them as they are.
"""
