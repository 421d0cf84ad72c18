// Cells that were compiled elsewhere and loaded: a name and what their library holds.
#pragma once

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>

namespace rnnext {

// `Written`: what a library holds. None is ever removed.
template <class Written>
class LoadedCells {
 public:
  static LoadedCells& all() {
    static LoadedCells& instance = *new LoadedCells;  // outlives every thread
    return instance;
  }

  // Or null.
  const Written* find(std::string_view name) {
    const std::shared_lock lock(mutex_);
    const auto found = cells_.find(name);
    return found == cells_.end() ? nullptr : found->second;
  }

  // What a library has under `symbol`, or null. Throws where it can't be opened; it then stays open.
  static const Written* open(const std::string& path, const char* symbol) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(std::string("rnnext: a compiled cell does not load: ") + dlerror());
    return static_cast<const Written*>(dlsym(library, symbol));
  }

  // A name that is there already is left as it is.
  std::string add(const Written* cell) {
    const std::string name = cell->f32->shape.name;
    const std::unique_lock lock(mutex_);
    cells_.emplace(name, cell);
    return name;
  }

 private:
  std::shared_mutex mutex_;
  std::map<std::string, const Written*, std::less<>> cells_;
};

}  // namespace rnnext
