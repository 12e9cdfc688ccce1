// SPDX-License-Identifier: Apache-2.0
// What the bindings ask of pointers and sizes before a kernel sees them.
#pragma once

#include "common/element_type.h"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace bound {

inline void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("pyprune._C: ") + what);
}

template <class Element>
Element* pointer(uintptr_t address, int64_t elements, const char* name) {
    require(address != 0 || elements == 0, (std::string(name) + " is a null pointer").c_str());
    return reinterpret_cast<Element*>(address);
}

// Product of two sizes, refused where it is negative or does not fit the address space.
inline int64_t area(int64_t rows, int64_t columns) {
    require(rows >= 0 && columns >= 0, "a size is negative");
    require(columns == 0 || rows <= std::numeric_limits<int64_t>::max() / 16 / columns, "a size overflows");
    return rows * columns;
}

inline pyprune::ElementType element(int code) {
    require(code >= 0 && code <= 3, "unknown element type");
    return static_cast<pyprune::ElementType>(code);
}

// N:M: groups of `of` columns that keep `keep` each.
inline void check_groups(int64_t columns, int64_t keep, int64_t of) {
    require(of >= 0 && keep >= 0 && keep <= of, "keep must be 0 to of");
    require(of == 0 || columns % of == 0, "columns must be a multiple of the group");
}

inline void check_threads(int threads) {
    require(threads >= 1 && threads <= 4096, "threads must be 1 to 4096");
}

}  // namespace bound
