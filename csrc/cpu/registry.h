// Cells by name: the built-in ones, and those written in Python that were loaded.
#pragma once

#include <string>
#include <string_view>

#include "engine/cell.h"

namespace rnnext {

// The cell of that name, built in or loaded, or null.
template <class T>
const Cell<T>* find_cell(std::string_view name);

// What the cell of that name is like; one compiled by an earlier process is looked for, too. Throws where there is none.
const CellShape& cell_named(std::string_view name);

// Loads a library that holds one cell, compiled for the instruction set in use (see cpu/written.h), and returns the
// cell's name. A name that is loaded already is left as it is. Throws when the library does not fit.
std::string load_cell(const std::string& path);

}  // namespace rnnext
