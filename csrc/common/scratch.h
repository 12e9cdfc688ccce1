// SPDX-License-Identifier: Apache-2.0
// Memory that is used again. A fresh page costs the kernel more than a sweep over it costs us (a 768 x 768 layer touches
// 20 MB, which took 40 % of its time), so blocks that are given back are kept, up to a bound, and large ones ask for
// huge pages. Shared by all instruction sets; any thread may call.
#pragma once

#include <cstddef>

namespace pyprune {

/// Bytes kept at most when nobody uses them.
constexpr size_t kScratchKept = size_t(64) << 20;

/// At least `bytes` bytes on a cache line's boundary, contents undefined. Throws std::bad_alloc.
void* take_scratch(size_t bytes);

/// Give back what take_scratch returned for the same number of bytes. Null is allowed.
void give_scratch(void* memory, size_t bytes) noexcept;

}  // namespace pyprune
