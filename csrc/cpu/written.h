// A library that holds one cell, written in Python and compiled for one instruction set. Its source file,
//
//   #include "cpu/isa/avx512.h"
//   #include "cpu/written.h"
//   #include "cell.h"                     what codegen printed: a struct as those in cells/
//   RNNEXT_WRITTEN_CELL(MyCell)
//   #include "cpu/isa/end.h"
//
// is compiled once for each type of values, in parallel: RNNEXT_CELL_TYPE is float or double.
#pragma once

#include "engine/cell.h"

namespace rnnext {

// Changes whenever engine/cell.h does: a library compiled against another one is refused.
constexpr int kCellVersion = 3;

struct WrittenCell {
  int version;
  const char* instruction_set;
  const Cell<float>* f32;
  const Cell<double>* f64;
};

}  // namespace rnnext

#ifdef RNNEXT_CELL_TYPE
#include "cpu/step.h"

extern "C" {
extern const rnnext::Cell<float> rnnext_cell_float;
extern const rnnext::Cell<double> rnnext_cell_double;
}

#define RNNEXT_PASTE_EXPANDED(a, b) a##b
#define RNNEXT_PASTE(a, b) RNNEXT_PASTE_EXPANDED(a, b)
#define RNNEXT_STRING_EXPANDED(a) #a
#define RNNEXT_STRING(a) RNNEXT_STRING_EXPANDED(a)

// rnnext_cell is the symbol that the registry looks for. Both objects have it; the linker takes one.
#define RNNEXT_WRITTEN_CELL(Struct)                                                                          \
  constexpr rnnext::Cell<RNNEXT_CELL_TYPE> RNNEXT_PASTE(rnnext_cell_, RNNEXT_CELL_TYPE) =                    \
      rnnext::RNNEXT_ISA::cell<RNNEXT_CELL_TYPE, rnnext::RNNEXT_ISA::Struct>();                              \
  extern "C" __attribute__((visibility("default"), weak)) const rnnext::WrittenCell rnnext_cell;             \
  const rnnext::WrittenCell rnnext_cell{rnnext::kCellVersion, RNNEXT_STRING(RNNEXT_ISA), &rnnext_cell_float, \
                                        &rnnext_cell_double};
#endif
