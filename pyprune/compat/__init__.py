# SPDX-License-Identifier: Apache-2.0
"""Drop-in replacements with other projects' signatures; one module per project, imported by its full name.

``pyprune.compat.sparsegpt.SparseGPT``, ``pyprune.compat.obc.TrueOBS`` and
``pyprune.compat.llmcompressor.sparsify_weight``. They log to ``pyprune.compat`` and print nothing.
"""
