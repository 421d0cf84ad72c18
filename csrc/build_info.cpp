// rnnext._build: what the compiler knows about this build. Part of no kernel: the ops library links no libpython.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#if defined(__clang__)
#define RNNEXT_COMPILER "clang++ " __clang_version__
#else
#define RNNEXT_COMPILER "g++ " __VERSION__
#endif

namespace py = pybind11;

PYBIND11_MODULE(_build, m) {
  m.doc() = "How rnnext's libraries were built.";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("compiler") = RNNEXT_COMPILER;
  m.attr("cxx_standard") = static_cast<long>(__cplusplus);
  m.attr("cxx_flags") = RNNEXT_CXX_FLAGS;
#if defined(_OPENMP)
  m.attr("openmp") = _OPENMP;
#else
  m.attr("openmp") = py::none();
#endif
}
