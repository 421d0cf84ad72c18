// Launches of simple kernels.
#pragma once

#include "cuda/device.h"

namespace rnnext::cuda {

// A thread for each of `count` items; none where there are none.
template <class... Parameters>
void launch_each(void (*kernel)(Parameters...), int64_t count, Stream stream, const Parameters&... arguments) {
  constexpr int threads = 256;
  if (count > 0) {
    launch(kernel, {dim3(static_cast<unsigned>((count + threads - 1) / threads)), threads}, stream, arguments...);
  }
}

}  // namespace rnnext::cuda
