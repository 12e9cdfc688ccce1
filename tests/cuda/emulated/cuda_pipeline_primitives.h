// SPDX-License-Identifier: Apache-2.0
//
// Copies to shared memory that arrive as late as they may: when their thread waits for them. Until then their place
// holds NaN, so that a missing wait is seen.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "cuda_runtime.h"

namespace emulated {

struct Copy {
    void* target;
    const void* source;
    std::size_t size;
};

/// Groups of copies that each thread of the block has begun; a thread's last one is open.
inline std::array<std::deque<std::vector<Copy>>, 1024> copies;

inline std::deque<std::vector<Copy>>& copies_of_thread() {
    auto& groups = copies[threadIdx.x];
    if (groups.empty()) {
        groups.emplace_back();
    }
    return groups;
}

}  // namespace emulated

inline void __pipeline_memcpy_async(void* target, const void* source, std::size_t size) {
    const auto address = reinterpret_cast<std::uintptr_t>(target) | reinterpret_cast<std::uintptr_t>(source);
    if (size != 16 || address % 16 != 0) {
        std::fputs("a copy to shared memory is not of 16 aligned bytes\n", stderr);
        std::_Exit(3);
    }
    std::memset(target, 0xff, size);
    emulated::copies_of_thread().back().push_back({target, source, size});
}
inline void __pipeline_commit() {
    emulated::copies_of_thread().emplace_back();
}
inline void __pipeline_wait_prior(std::size_t left) {
    for (auto& groups = emulated::copies_of_thread(); groups.size() > left + 1; groups.pop_front()) {
        for (const auto& copy : groups.front()) {
            std::memcpy(copy.target, copy.source, copy.size);
        }
    }
}
