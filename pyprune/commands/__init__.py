# SPDX-License-Identifier: Apache-2.0
"""One file per command; each has ``add(subparsers)`` and ``run(arguments) -> int``."""
