// SPDX-License-Identifier: Apache-2.0
#include "scratch.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyprune {
namespace {

constexpr size_t kSmall = size_t(64) << 10;  // malloc keeps such blocks itself
constexpr size_t kHuge = size_t(2) << 20;

struct Pool {
    std::mutex lock;
    std::multimap<size_t, void*> blocks;  // by size
    size_t kept = 0;
};

// Never destroyed: tensors may give memory back while the process ends.
Pool& pool() {
    static Pool* shared = new Pool;
    return *shared;
}

// Sizes are rounded so that a block fits the next, slightly different, request.
size_t rounded(size_t bytes) {
    const size_t unit = bytes < kHuge ? size_t(64) << 10 : kHuge / 2;
    if (bytes > static_cast<size_t>(-1) - unit) throw std::bad_alloc();
    return (bytes + unit - 1) / unit * unit;
}

void* fresh(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, bytes >= kHuge ? kHuge : 64, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= kHuge) madvise(memory, bytes, MADV_HUGEPAGE);  // advice: failing is fine
#endif
    return memory;
}

}  // namespace

void* take_scratch(size_t bytes) {
    if (bytes < kSmall) return fresh(bytes == 0 ? 64 : bytes);
    const size_t size = rounded(bytes);
    Pool& shared = pool();
    {
        const std::lock_guard<std::mutex> guard(shared.lock);
        // Exactly this size: a larger block could not be given back under its own.
        const auto found = shared.blocks.find(size);
        if (found != shared.blocks.end()) {
            void* memory = found->second;
            shared.blocks.erase(found);
            shared.kept -= size;
            return memory;
        }
    }
    return fresh(size);
}

void give_scratch(void* memory, size_t bytes) noexcept {
    if (memory == nullptr) return;
    if (bytes >= kSmall) {
        const size_t size = rounded(bytes);
        Pool& shared = pool();
        const std::lock_guard<std::mutex> guard(shared.lock);
        if (size <= kScratchKept) {
            try {
                // The smallest go first: the large ones are the ones that cost.
                while (shared.kept + size > kScratchKept) {
                    const auto oldest = shared.blocks.begin();
                    shared.kept -= oldest->first;
                    std::free(oldest->second);
                    shared.blocks.erase(oldest);
                }
                shared.blocks.emplace(size, memory);
                shared.kept += size;
                return;
            } catch (const std::bad_alloc&) {
                // No room to remember it: free it.
            }
        }
    }
    std::free(memory);
}

}  // namespace pyprune
