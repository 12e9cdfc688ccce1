// SPDX-License-Identifier: Apache-2.0
// One block of memory for many arrays: a first pass over the same requests, without memory, measures.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyprune {
namespace PYPRUNE_ISA {

class Carver {
  public:
    explicit Carver(char* memory = nullptr) : memory_(memory) {}

    // The next `count` elements, at the start of a cache line; null while measuring.
    template <class Element>
    Element* take(int64_t count) {
        char* place = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += (static_cast<size_t>(count) * sizeof(Element) + 63) / 64 * 64;
        return reinterpret_cast<Element*>(place);
    }

    size_t used() const { return used_; }

  private:
    char* memory_;
    size_t used_ = 0;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune
