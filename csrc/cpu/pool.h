// Memory of large tensors that stays for the next call.
#pragma once

#include <ATen/core/Tensor.h>

namespace rnnext::cpu {

// An uninitialised tensor of the dtype of `like`. The C library gives large memory back to the system when it is freed,
// and maps it anew at the next call: a page fault for each 4 KiB, which costs more than an elementwise step. Here up to
// 256 MiB of what was freed waits for its next use.
at::Tensor empty(at::IntArrayRef sizes, const at::Tensor& like);

}  // namespace rnnext::cpu
