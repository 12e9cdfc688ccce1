// SPDX-License-Identifier: Apache-2.0
// Cache-line aligned scratch memory that throws std::bad_alloc and gives itself back.
#pragma once

#include "scratch.h"

#include <cstddef>
#include <new>

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Element>
class Buffer {
  public:
    explicit Buffer(size_t count) {
        if (count > (static_cast<size_t>(-1) - 128) / sizeof(Element)) throw std::bad_alloc();
        // One spare cache line, so that a vector may be loaded past the last element.
        bytes_ = (count * sizeof(Element) + 63) / 64 * 64 + 64;
        data_ = static_cast<Element*>(take_scratch(bytes_));
    }
    ~Buffer() { give_scratch(data_, bytes_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    Element* data() { return data_; }
    Element& operator[](size_t index) { return data_[index]; }

  private:
    size_t bytes_ = 0;
    Element* data_ = nullptr;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune
