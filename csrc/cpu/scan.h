// The CPU backend: one scan, forward and backward, on at::get_num_threads() threads.
#pragma once

#include "engine/params.h"

namespace rnnext::cpu {

template <class T>
void scan_forward(const ScanForward<T>& params);

template <class T>
void scan_backward(const ScanBackward<T>& params);

}  // namespace rnnext::cpu
