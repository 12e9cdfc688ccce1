# SPDX-License-Identifier: Apache-2.0
from emulation import emulated, emulated_library  # noqa: F401  (fixtures)
