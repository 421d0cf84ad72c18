#include "cuda/registry.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "cuda/built_in.h"
#include "cuda/written.h"
#include "engine/loaded.h"

namespace rnnext::cuda {
namespace {

template <class T>
const auto& built_in_cells() {
#define RNNEXT_LIST(Struct) &built_in_##Struct<T>(),
  static const Cell<T>* const cells[] = {RNNEXT_BUILT_IN_CELLS(RNNEXT_LIST)};
#undef RNNEXT_LIST
  return cells;
}

}  // namespace

template <class T>
const Cell<T>* find_cell(std::string_view name) {
  for (const Cell<T>* cell : built_in_cells<T>()) {
    if (name == cell->shape.name) return cell;
  }
  const WrittenCell* written = LoadedCells<WrittenCell>::all().find(name);
  if (!written) return nullptr;
  if constexpr (std::is_same_v<T, float>) {
    return written->f32;
  } else {
    return written->f64;
  }
}

template <class T>
const Cell<T>& cell_named(std::string_view name) {
  if (const Cell<T>* cell = find_cell<T>(name)) return *cell;
  // Written in Python, and not loaded yet: a program that was exported brings the names of its cells alone.
  const auto build = c10::Dispatcher::singleton().findSchemaOrThrow("rnnext::build_cuda_cell", "");
  const bool built = build.typed<bool(std::string_view)>().call(name);
  const Cell<T>* cell = built ? find_cell<T>(name) : nullptr;
  TORCH_CHECK_VALUE(cell, "rnnext: no cell is called '", name,
                    "' on CUDA: it is neither built in nor one written in Python that was compiled on this machine; or "
                    "it was, but there is no nvcc of the right version to compile it for GPUs. A cell has another name "
                    "with another version of rnnext, torch or the compiler: export its program with these");
  return *cell;
}

template const Cell<float>* find_cell<float>(std::string_view);
template const Cell<double>* find_cell<double>(std::string_view);
template const Cell<float>& cell_named<float>(std::string_view);
template const Cell<double>& cell_named<double>(std::string_view);

std::string load_cell(const std::string& path) {
  const WrittenCell* cell = LoadedCells<WrittenCell>::open(path, "rnnext_cuda_cell");
  if (!cell || cell->version != kCellVersion) {
    throw std::runtime_error("rnnext: " + path + " holds no CUDA cell for this version of rnnext");
  }
  return LoadedCells<WrittenCell>::all().add(cell);
}

}  // namespace rnnext::cuda
