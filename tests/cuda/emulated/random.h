// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace emulated {

/// Numbers in [-1, 1), the same in every run.
class Random {
  public:
    double operator()() {
        state_ = state_ * 1664525u + 1013904223u;
        return static_cast<double>(static_cast<int>(state_ >> 8) - (1 << 23)) / (1 << 23);
    }

  private:
    std::uint32_t state_ = 20261125u;
};

}  // namespace emulated
