#include "cpu/pool.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>

namespace rnnext::cpu {
namespace {

constexpr size_t kLarge = size_t{1} << 20, kKept = size_t{256} << 20;  // bytes

class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    Block* block = find(size);
    if (!block) block = new Block{size, c10::GetCPUAllocator()->allocate(size)};
    return {block->memory.get(), block, &give_back, c10::DeviceType::CPU};
  }

  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }

  static Pool& instance() {
    static Pool& pool = *new Pool;  // outlives every tensor
    return pool;
  }

 private:
  struct Block {
    size_t size;
    c10::DataPtr memory;
  };

  // The smallest that is free, large enough and not much larger; of those the last used, which caches may hold.
  Block* find(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const bool fits = (*it)->size >= size && (*it)->size - size <= size / 4;
      if (fits && (best == free_.end() || (*it)->size <= (*best)->size)) best = it;
    }
    if (best == free_.end()) return nullptr;
    Block* block = best->release();
    free_.erase(best);
    kept_ -= block->size;
    return block;
  }

  static void give_back(void* context) {
    std::unique_ptr<Block> block(static_cast<Block*>(context));
    std::list<std::unique_ptr<Block>> dropped;  // freed when the lock is
    Pool& pool = instance();
    // Another thread of a process may have held the lock when it was forked: then nobody will unlock it here.
    const std::unique_lock lock(pool.mutex_, std::try_to_lock);
    if (!lock || block->size > kKept) return;
    pool.kept_ += block->size;
    pool.free_.push_back(std::move(block));
    while (pool.kept_ > kKept) {
      pool.kept_ -= pool.free_.front()->size;
      dropped.splice(dropped.end(), pool.free_, pool.free_.begin());
    }
  }

  std::mutex mutex_;
  std::list<std::unique_ptr<Block>> free_;  // the longest unused first
  size_t kept_ = 0;
};

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, const at::Tensor& like) {
  const size_t bytes = c10::multiply_integers(sizes) * like.element_size();
  const bool filled =
      at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory();
  if (bytes < kLarge || filled) return like.new_empty(sizes);
  return at::detail::empty_generic(sizes, &Pool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   like.scalar_type(), std::nullopt);
}

}  // namespace rnnext::cpu
