// Elementwise functions of the cells, written once over a value type V: a SIMD vector on the CPU.
//
// Whoever includes this first declares V with Scalar, arithmetic, comparison, select(mask, a, b), fma, sqrt and its bits;
// mask_and and the like; and RNNEXT_INLINE and RNNEXT_COEFFICIENTS. On the CPU that is cpu/simd.h, on GPUs
// cuda/scalar.h.
// Each function keeps NaN (sign alone gives 0, as torch's) and has its limits at zero, infinity and outside its domain.
// The largest errors, in units in the last place, are held by tests/test_math.py.
#pragma once

#include "cells/math_basic.h"
#include "cells/math_exp.h"
#include "cells/math_log.h"
#include "cells/math_pow.h"
#include "cells/math_trig.h"
