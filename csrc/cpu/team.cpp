#include "cpu/team.h"

#include <pthread.h>

namespace rnnext::cpu {
namespace {

std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

int available_threads() {
  return forked || at::in_parallel_region() ? 1 : at::get_num_threads();
}

}  // namespace rnnext::cpu
