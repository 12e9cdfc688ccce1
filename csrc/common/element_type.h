// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace pyprune {

/// Type of the elements behind a `const void*`. The numbers are part of the binding's contract.
enum class ElementType : int { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

}  // namespace pyprune
