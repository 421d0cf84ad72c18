// Stands in for csrc/cells/math.h in the tests of generated cells: one value of float64, and libm.
#pragma once

#include <cmath>

#define RNNEXT_INLINE inline

namespace rnnext::mock {

struct Value {
  using Scalar = double;
  using Mask = bool;

  double v;

  explicit Value(double scalar) : v(scalar) {}
};

// Values only meet values, and masks are no numbers, as with the engine's vectors.
inline Value operator+(Value a, Value b) {
  return Value(a.v + b.v);
}
inline Value operator-(Value a, Value b) {
  return Value(a.v - b.v);
}
inline Value operator*(Value a, Value b) {
  return Value(a.v * b.v);
}
inline Value operator/(Value a, Value b) {
  return Value(a.v / b.v);
}
inline Value operator-(Value a) {
  return Value(-a.v);
}
inline bool operator<(Value a, Value b) {
  return a.v < b.v;
}
inline bool operator<=(Value a, Value b) {
  return a.v <= b.v;
}
inline bool operator>(Value a, Value b) {
  return a.v > b.v;
}
inline bool operator>=(Value a, Value b) {
  return a.v >= b.v;
}
inline bool operator==(Value a, Value b) {
  return a.v == b.v;
}
inline bool operator!=(Value a, Value b) {
  return a.v != b.v;
}

inline bool mask_and(bool a, bool b) {
  return a && b;
}
inline bool mask_or(bool a, bool b) {
  return a || b;
}
inline bool mask_xor(bool a, bool b) {
  return a != b;
}
inline bool mask_not(bool a) {
  return !a;
}
inline Value select(bool m, Value a, Value b) {
  return m ? a : b;
}

inline Value abs(Value x) {
  return Value(std::fabs(x.v));
}
inline Value sqrt(Value x) {
  return Value(std::sqrt(x.v));
}
inline Value rsqrt(Value x) {
  return Value(1 / std::sqrt(x.v));
}
inline Value exp(Value x) {
  return Value(std::exp(x.v));
}
inline Value expm1(Value x) {
  return Value(std::expm1(x.v));
}
inline Value log(Value x) {
  return Value(std::log(x.v));
}
inline Value log1p(Value x) {
  return Value(std::log1p(x.v));
}
inline Value sin(Value x) {
  return Value(std::sin(x.v));
}
inline Value cos(Value x) {
  return Value(std::cos(x.v));
}
inline Value tanh(Value x) {
  return Value(std::tanh(x.v));
}
inline Value sigmoid(Value x) {
  return Value(1 / (1 + std::exp(-x.v)));
}
inline Value erf(Value x) {
  return Value(std::erf(x.v));
}
inline Value pow(Value x, Value y) {
  return Value(std::pow(x.v, y.v));
}
inline Value relu(Value x) {
  return x.v < 0 ? Value(0) : x;
}
inline Value minimum(Value a, Value b) {
  return a.v < b.v || a.v != a.v ? a : b;
}
inline Value maximum(Value a, Value b) {
  return a.v > b.v || a.v != a.v ? a : b;
}
inline Value floor(Value x) {
  return Value(std::floor(x.v));
}
inline Value ceil(Value x) {
  return Value(std::ceil(x.v));
}
inline Value trunc(Value x) {
  return Value(std::trunc(x.v));
}
inline Value round(Value x) {
  return Value(std::nearbyint(x.v));
}
inline Value sign(Value x) {
  return Value((x.v > 0) - (x.v < 0));
}

}  // namespace rnnext::mock
