// Cells by name: the built-in ones, and those written in Python whose CUDA libraries were loaded.
#pragma once

#include <string>
#include <string_view>

#include "cuda/cell.h"

namespace rnnext::cuda {

// The cell of that name, or null.
template <class T>
const Cell<T>* find_cell(std::string_view name);

// The same; throws where there is none.
template <class T>
const Cell<T>& cell_named(std::string_view name);

// Loads a library that holds one cell (see cuda/written.cuh) and returns its name.
std::string load_cell(const std::string& path);

}  // namespace rnnext::cuda
