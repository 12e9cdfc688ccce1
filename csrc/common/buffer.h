// SPDX-License-Identifier: Apache-2.0
// Cache-line aligned scratch memory that throws std::bad_alloc and frees itself.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Element>
class Buffer {
  public:
    explicit Buffer(size_t count) {
        // One spare cache line, so that a vector may be loaded past the last element.
        const size_t bytes = (count * sizeof(Element) + 63) / 64 * 64 + 64;
        void* memory = nullptr;
        if (count > (static_cast<size_t>(-1) - 128) / sizeof(Element) || posix_memalign(&memory, 64, bytes) != 0)
            throw std::bad_alloc();
        data_ = static_cast<Element*>(memory);
    }
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    Element* data() { return data_; }
    Element& operator[](size_t index) { return data_[index]; }

  private:
    Element* data_ = nullptr;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune
