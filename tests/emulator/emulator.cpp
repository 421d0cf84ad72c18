#include "emulator.h"

#include <sys/mman.h>

namespace emulator {
namespace {

// Saves the registers that a called function keeps, and goes on with another stack.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void to_scheduler() {
  Machine& m = machine();
  emulator_switch(&m.current->stack_pointer, m.scheduler);
}

void release(Block& block, unsigned begin, unsigned end) {
  for (unsigned i = begin; i < std::min(end, block.threads); ++i) block.fibers[i].waiting = false;
}

void release_block(Block& block) {
  block.arrived = 0;
  release(block, 0, block.threads);
}

void release_warp(Block& block, unsigned number) {
  block.warps[number].arrived = 0;
  release(block, number * kLanes, (number + 1) * kLanes);
}

void release_all() {
  machine().arrived = 0;
  for (Fiber& fiber : machine().fibers) fiber.waiting = false;
}

// Threads that end count as arrived at every barrier.
void finish() {
  Fiber& fiber = self();
  Block& block = *fiber.block;
  fiber.done = true;
  Warp& w = block.warps[fiber.thread / kLanes];
  if (--block.live > 0 && block.arrived == block.live) release_block(block);
  Machine& m = machine();
  if (--m.live > 0 && m.arrived == m.live) release_all();
  if (--w.live > 0 && w.arrived == w.live) release_warp(block, fiber.thread / kLanes);
}

void enter() {
  try {
    machine().kernel();
  } catch (const std::exception& error) {
    machine().error = error.what();
  }
  finish();
  to_scheduler();
  std::abort();  // a fiber that ended has no more turns
}

uint64_t next_random() {
  uint64_t& x = machine().random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

void prepare(Fiber& fiber, size_t number) {
  Machine& m = machine();
  if (number >= m.stacks.size()) {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for a thread's stack");
    m.stacks.push_back(static_cast<unsigned char*>(memory));
  }
  // As if `enter` had been called: aligned to 16 bytes less the return address.
  void** top = reinterpret_cast<void**>(m.stacks[number] + kStack) - 1;
  *--top = reinterpret_cast<void*>(&enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

// One in `part` of the work that waits.
void do_some_later(unsigned part) {
  std::vector<std::function<void()>>& works = machine().later;
  for (size_t i = 0; i < works.size();) {
    if (next_random() % part) {
      ++i;
      continue;
    }
    machine().idle = 0;
    std::swap(works[i], works.back());
    const std::function<void()> work = std::move(works.back());
    works.pop_back();
    work();
  }
}

void run_blocks(unsigned first, unsigned count, int threads, int shared) {
  Machine& m = machine();
  m.blocks.assign(count, {});
  m.fibers.assign(static_cast<size_t>(count) * threads, {});
  for (unsigned b = 0; b < count; ++b) {
    Block& block = m.blocks[b];
    const unsigned number = first + b;
    block.index = {number % m.grid.x, number / m.grid.x % m.grid.y, number / m.grid.x / m.grid.y};
    block.shared.assign(shared, 0xff);  // NaN where nothing was written
    block.warps.resize((threads + kLanes - 1) / kLanes);
    block.fibers = &m.fibers[static_cast<size_t>(b) * threads];
    block.live = block.threads = threads;
    for (int t = 0; t < threads; ++t) {
      Fiber& fiber = m.fibers[static_cast<size_t>(b) * threads + t];
      fiber.block = &block;
      fiber.thread = t;
      ++block.warps[t / kLanes].live;
      prepare(fiber, static_cast<size_t>(b) * threads + t);
    }
  }
  size_t left = m.fibers.size();
  m.live = static_cast<int>(left);
  m.arrived = 0;
  m.idle = 0;
  while (left > 0 && m.error.empty()) {
    // Every fiber once, in an order of its own.
    const size_t n = m.fibers.size();
    size_t step = 1 + next_random() % n;
    while (std::__gcd(step, n) != 1) ++step;
    size_t at = next_random() % n;
    bool ran = false;
    for (size_t i = 0; i < n && m.error.empty(); ++i, at = (at + step) % n) {
      Fiber& fiber = m.fibers[at];
      if (fiber.done || fiber.waiting) continue;
      ran = true;
      m.current = &fiber;
      emulator_switch(&m.scheduler, fiber.stack_pointer);
      m.current = nullptr;
      left -= fiber.done;
    }
    do_some_later(left > 0 ? 2 : 1);
    if (!ran && left > 0) m.error = "threads wait at a barrier that others do not reach";
    if (m.idle > 200 * n) m.error = "threads wait for other blocks for ever";
  }
}

}  // namespace

Machine& machine() {
  static Machine& instance = *new Machine;
  return instance;
}

void suspend() {
  to_scheduler();
}

void wait_for_blocks() {
  ++machine().idle;
  to_scheduler();
}

void block_barrier() {
  machine().idle = 0;
  Block& block = *self().block;
  if (++block.arrived == block.live) {
    release_block(block);
  } else {
    self().waiting = true;
  }
  to_scheduler();
}

void cluster_barrier() {
  Machine& m = machine();
  m.idle = 0;
  if (++m.arrived == m.live) {
    release_all();
  } else {
    self().waiting = true;
  }
  to_scheduler();
}

void later(std::function<void()> work) {
  machine().later.push_back(std::move(work));
}

void warp_barrier() {
  Block& block = *self().block;
  Warp& w = warp();
  if (++w.arrived == w.live) {
    release_warp(block, self().thread / kLanes);
  } else {
    self().waiting = true;
  }
  to_scheduler();
}

void run(dim3 grid, int threads, int shared, unsigned at_once, std::function<void()> kernel) {
  Machine& m = machine();
  m.grid = grid;
  m.block = dim3(threads);
  m.kernel = std::move(kernel);
  m.error.clear();
  m.later.clear();
  const unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned first = 0; first < blocks; first += at_once) run_blocks(first, at_once, threads, shared);
  if (!m.error.empty()) throw std::runtime_error("emulator: " + m.error);
}

}  // namespace emulator
