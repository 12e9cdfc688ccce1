// SPDX-License-Identifier: Apache-2.0
// When, in a race of exponential clocks, how many have arrived on average: from a histogram of the logarithms of rates.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace pyprune {
namespace PYPRUNE_ISA {

constexpr int kBins = 1024;

class Arrivals {
  public:
    // Bins of equal width from the lowest rate to the highest.
    Arrivals(const int64_t* bins, double lowest, double highest) : early_(-highest - 50.0), late_(-lowest + 5.0) {
        for (int b = 0; b < kBins; ++b) {
            if (bins[b] == 0) continue;
            rate_.push_back(lowest + (b + 0.5) * (highest - lowest) / kBins);
            count_.push_back(static_cast<double>(bins[b]));
            all_ += count_.back();
        }
    }

    // Mean number of arrivals up to a time.
    double by(double log_time) const {
        double sum = 0.0;
        for (size_t b = 0; b < rate_.size(); ++b) sum -= count_[b] * std::expm1(-std::exp(log_time + rate_[b]));
        return sum;
    }

    // Its standard deviation.
    double deviation(double log_time) const {
        double sum = 0.0;
        for (size_t b = 0; b < rate_.size(); ++b) {
            const double later = std::exp(-std::exp(log_time + rate_[b]));
            sum += count_[b] * later * (1.0 - later);
        }
        return std::sqrt(sum);
    }

    // The logarithm of the time by which so many have arrived: −∞ for none or less, ∞ for all or more.
    double when(double arrivals) const {
        if (arrivals <= 0.0) return -std::numeric_limits<double>::infinity();
        if (arrivals >= all_) return std::numeric_limits<double>::infinity();
        double early = early_, late = late_;
        while (late - early > 1e-4) {
            const double middle = 0.5 * (early + late);
            (by(middle) < arrivals ? early : late) = middle;
        }
        return 0.5 * (early + late);
    }

  private:
    double early_, late_, all_ = 0.0;
    std::vector<double> rate_, count_;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune
