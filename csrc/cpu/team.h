// Threads that work on one scan together.
#pragma once

#include <ATen/Parallel.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <atomic>
#include <exception>
#include <vector>

#include "engine/handoff.h"

namespace rnnext::cpu {

// Each thread says in a cache line of its own how often it came, and reads the lines of the others: no line is written by
// two, so that a meeting of two takes one way from processor to processor.
class Barrier {
 public:
  explicit Barrier(int size) : lines_(size) {}

  void wait(int rank, int size) {
    std::atomic<int64_t>& mine = lines_[rank].arrivals;
    const int64_t round = mine.load(std::memory_order_relaxed) + 1;
    mine.store(round, std::memory_order_release);
    for (int i = 0; i < size; ++i) {
      wait_until([&] { return lines_[i].arrivals.load(std::memory_order_acquire) >= round; });
    }
  }

 private:
  struct alignas(64) Line {
    std::atomic<int64_t> arrivals{0};
  };
  std::vector<Line> lines_;
};

struct Team {
  int rank, size;
  Barrier* barrier;

  void sync() const {
    if (size > 1) barrier->wait(rank, size);
  }

  // This thread's share of n items, cut at multiples of `grain`.
  Range share(int64_t n, int64_t grain = 1) const {
    const int64_t grains = (n + grain - 1) / grain;
    return {std::min(n, grains * rank / size * grain), std::min(n, grains * (rank + 1) / size * grain)};
  }

  // Calls work(i) for this thread's of n parts: its own one, or more where OpenMP gave fewer threads than parts.
  template <class Work>
  void each(int64_t n, Work work) const {
    for (int64_t i = rank; i < n; i += size) work(i);
  }
};

// Threads to use: those of torch.set_num_threads; but one alone where other threads work beside this one, and in a process
// that was forked. It has no OpenMP threads, and waiting for them would never end.
int available_threads();

// Runs work(team) on up to `threads` threads; OpenMP may give fewer, so the team has the size that it gave.
template <class Work>
void run_team(int threads, Work work) {
#ifdef _OPENMP
  if (threads > 1 && !at::in_parallel_region()) {
    Barrier barrier(threads);
#pragma omp parallel num_threads(threads)
    {
      const Team team{omp_get_thread_num(), omp_get_num_threads(), &barrier};
      work(team);
      team.sync();  // before OpenMP's own barrier, which spins for milliseconds and does not yield
    }
    return;
  }
#endif
  work(Team{0, 1, nullptr});
}

// Calls work(i) for i below n, at the same time where there are threads, each of which is then alone. One that has several
// does the first of them first, so that work(i) may wait for work(i - 1).
template <class Work>
void run_apart(int n, Work work) {
  std::vector<std::exception_ptr> errors(n);
  run_team(std::min(n, available_threads()), [&](const Team& team) {
    team.each(n, [&](int64_t i) {
      try {
        work(i);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace rnnext::cpu
