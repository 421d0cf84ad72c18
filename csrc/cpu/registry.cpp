#include "cpu/registry.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "cpu/kernels.h"
#include "cpu/written.h"
#include "engine/loaded.h"

namespace rnnext {

template <class T>
const Cell<T>* find_cell(std::string_view name) {
  const Kernels<T>& table = kernels<T>();
  for (int i = 0; i < table.cell_count; ++i) {
    if (name == table.cells[i].shape.name) return &table.cells[i];
  }
  const WrittenCell* written = LoadedCells<WrittenCell>::all().find(name);
  if (!written) return nullptr;
  if constexpr (std::is_same_v<T, float>) {
    return written->f32;
  } else {
    return written->f64;
  }
}

template const Cell<float>* find_cell<float>(std::string_view);
template const Cell<double>* find_cell<double>(std::string_view);

const CellShape& cell_named(std::string_view name) {
  if (const Cell<float>* cell = find_cell<float>(name)) return cell->shape;
  // A program that was exported brings the names of its cells alone.
  const auto load = c10::Dispatcher::singleton().findSchemaOrThrow("rnnext::load_cached_cell", "");
  if (load.typed<bool(std::string_view)>().call(name)) return find_cell<float>(name)->shape;
  std::string known;
  for (int i = 0; i < kernels<float>().cell_count; ++i) {
    known += std::string(i ? ", " : "") + kernels<float>().cells[i].shape.name;
  }
  TORCH_CHECK_VALUE(false, "rnnext: no cell is called '", name, "'; there are ", known,
                    ", and the cells written in Python whose layers have run on this machine. A cell has another name "
                    "with another version of rnnext, torch or the compiler: export its program with these");
}

std::string load_cell(const std::string& path) {
  const WrittenCell* cell = LoadedCells<WrittenCell>::open(path, "rnnext_cell");
  if (!cell || cell->version != kCellVersion || instruction_set().name != std::string_view(cell->instruction_set)) {
    throw std::runtime_error("rnnext: " + path + " holds no cell for this version of rnnext and the instruction set " +
                             instruction_set().name);
  }
  return LoadedCells<WrittenCell>::all().add(cell);
}

}  // namespace rnnext
