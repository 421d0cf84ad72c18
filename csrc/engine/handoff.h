// Scans that run at the same time, each of which reads the rows that another one writes: the layers of a stack.
#pragma once

#include <sched.h>

#include <atomic>
#include <functional>
#include <limits>
#include <vector>

#include "engine/params.h"

namespace rnnext {

// Spins briefly, then yields: on a busy machine the thread that is waited for may need this processor.
template <class Ready>
void wait_until(Ready ready) {
  for (int spins = 0; !ready(); ++spins) {
    if (spins < 2000) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      sched_yield();
    }
  }
}

// Between two scans that go through the rows in the same order.
class Handoff {
 public:
  void give(int64_t rows) { given_.fetch_add(rows, std::memory_order_release); }

  // Waits until so many rows more have been given than were taken.
  void take(int64_t rows) {
    taken_ += rows;
    wait_until([&] { return given_.load(std::memory_order_acquire) >= taken_; });
  }

 private:
  alignas(64) std::atomic<int64_t> given_{0};
  alignas(64) int64_t taken_ = 0;
};

// What a scan takes and gives; where one scan follows another, nothing.
struct Links {
  Handoff *from = nullptr, *to = nullptr;
  std::function<void(Range rows)> prepare;  // what is done with rows that came, before they are read

  void take(Range rows) const {
    if (!from) return;
    from->take(rows.size());
    if (prepare) prepare(rows);
  }
  void give(Range rows) const {
    if (to) to->give(rows.size());
  }
  // Of a scan that failed: nobody waits for the rest of its rows.
  void give_up() const {
    if (to) to->give(std::numeric_limits<int64_t>::max() / 2);
  }
};

// Scans of which each reads what the one before it writes, to run at the same time.
template <class Scan>
class Chain {
 public:
  explicit Chain(int64_t n) : handoffs_(n), links_(n) { scans_.reserve(n); }
  Chain(const Chain&) = delete;

  void add(const Scan& scan, const std::function<void(Range rows)>& prepare) {
    const size_t i = scans_.size();
    links_[i] = {i > 0 ? &handoffs_[i - 1] : nullptr, i + 1 < links_.size() ? &handoffs_[i] : nullptr, prepare};
    scans_.push_back(scan);
    scans_.back().links = &links_[i];
  }

  const std::vector<Scan>& scans() const { return scans_; }

 private:
  std::vector<Handoff> handoffs_;
  std::vector<Links> links_;
  std::vector<Scan> scans_;
};

}  // namespace rnnext
