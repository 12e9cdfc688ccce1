// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace pyprune::cuda {

/// Devices the runtime can see; 0 when there is no driver, no device or a driver too old. Never
/// throws, so it is safe at import time.
int device_count() noexcept;

/// The runtime's reason for device_count() == 0, or "" when there is a device.
std::string no_device_reason();

/// CUDA runtime linked into this library, as 1000 * major + 10 * minor (13000 is 13.0).
int runtime_version();

/// Newest CUDA version the installed driver supports, same form; 0 without a driver.
int driver_version();

/// Architectures compiled in, as nvcc names them: "800,900".
std::string compiled_archs();

/// Why the code in this library cannot run on `device`, or "" when it can. Asks the runtime to load
/// a kernel there (cubin or PTX), so it creates the device's primary context; the calling thread's
/// current device is left as it was. Throws std::runtime_error when `device` does not exist.
std::string load_problem(int device);

}  // namespace pyprune::cuda
