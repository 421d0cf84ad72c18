// The CUDA backend: one scan, forward and backward, queued on the current stream.
#pragma once

#include "engine/params.h"

namespace rnnext::cuda {

template <class T>
void scan_forward(const ScanForward<T>& params);

template <class T>
void scan_backward(const ScanBackward<T>& params);

}  // namespace rnnext::cuda
