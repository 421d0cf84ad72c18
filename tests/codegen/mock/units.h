// Runs a generated cell on one unit at a time, in plain loops, and holds it to the rules of csrc/engine/cell.h: what it
// may read in a stage, and that every result is written exactly once. What is not there yet is NaN.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::mock {

const double kNaN = __builtin_nan("");

// One value of a step for all rows: [rows, units].
struct Array {
  int8_t width = kHidden;
  int64_t units = 0;
  std::vector<double> data, written;  // written: how often

  double& at(int64_t row, int64_t unit) { return data[row * units + (units == 1 ? 0 : unit)]; }
};

// All arrays of a step by name, as "next 0".
struct Step {
  int64_t rows = 0;
  std::vector<int64_t> sizes;
  std::map<std::string, Array> arrays;
  std::string error;

  static std::string key(const char* name, int k) { return std::string(name) + " " + std::to_string(k); }
  int64_t units(int8_t width) const { return width == kOne ? 1 : sizes[width]; }

  Array& add(const char* name, int k, int8_t width) {
    Array& a = arrays[key(name, k)];
    a.width = width;
    a.units = units(width);
    a.data.assign(rows * a.units, kNaN);
    a.written.assign(rows * a.units, 0);
    return a;
  }
  Array& get(const char* name, int k) {
    auto found = arrays.find(key(name, k));
    if (found == arrays.end()) fail("there is no ", key(name, k));
    return found == arrays.end() ? arrays.begin()->second : found->second;
  }
  void fail(const char* what, const std::string& which) {
    if (error.empty()) error = what + which;
  }
};

// `u` of a cell: one unit of one row in one stage; in a cell with sums over the batch, of all rows one by one.
struct Unit {
  using V = Value;

  Step& step;
  const Stage& stage;
  bool back;
  int64_t row, unit;
  bool at_row = true;

  bool has_row() { return at_row = row < step.rows; }
  void next_row() { ++row; }

  // What is the same in all rows, and may be read before the first one.
  V same(const char* name, int k) {
    Array& a = step.get(name, k);
    if (a.width != stage.width && a.width != kOne) step.fail("read in a stage of another width: ", Step::key(name, k));
    return V(a.at(0, unit));
  }
  V read(const char* name, int k) {
    if (!at_row) step.fail("read outside of a row: ", Step::key(name, k));
    Array& a = step.get(name, k);
    if (a.width != stage.width && a.width != kOne) step.fail("read in a stage of another width: ", Step::key(name, k));
    return V(a.at(row, unit));
  }
  void write(const char* name, int k, V v, const char* to = nullptr) {
    Array& a = step.get(to ? to : name, k);
    if (a.width != stage.width) step.fail("written in a stage of another width: ", Step::key(name, k));
    a.at(row, unit) = v.v;
    a.written[row * a.units + unit] += 1;
  }

  V a(int g) { return read("gate", g); }
  V x(int g) { return read("gate_x", g); }
  V r(int g) { return read("gate_h", g); }
  V state(int k) { return read("state", k); }
  V param(int k) { return same("param", k); }
  V noise(int k) { return read("noise", k); }
  V product(int p) { return read("product", p); }
  V value(int k) { return read(back ? "back_value" : "value", k); }
  V total(int k) { return read(back ? "back_total" : "total", k); }
  V size(int w) { return V(static_cast<double>(step.sizes[w])); }
  V batch() { return V(static_cast<double>(step.rows)); }
  V batch_sum(int k) { return same(back ? "back_batch_total" : "batch_total", k); }
  V forward_batch_sum(int k) { return same("batch_total", k); }
  V saved(int k) { return read("saved", k); }
  V next(int k) { return read("next", k); }
  V dnext(int k) { return read("dnext", k); }
  V doperand(int p) { return read("doperand", p); }

  void next(int k, V v) { write("next", k, v); }
  void save(int k, V v) { write("saved", k, v); }
  void put(int k, V v) { write(back ? "back_value" : "value", k, v); }
  void add(int k, V v) {
    if (k < stage.first_total || k >= stage.first_total + stage.totals)
      step.fail("no total of the stage: ", std::to_string(k));
    step.get(back ? "back_sum" : "sum", k).at(row, 0) += v.v;
  }
  void add_batch(int k, V v) {
    Array& a = step.get(back ? "back_batch_sum" : "batch_sum", k);
    if (!stage.sums_batch) step.fail("no sum over the batch in the stage: ", std::to_string(k));
    if (a.width != stage.width) step.fail("added up in a stage of another width: ", std::to_string(k));
    a.at(0, unit) += v.v;
    a.written[row * a.units + unit] += 1;
  }
  void da(int g, V v) { write("da", g, v); }
  void dx(int g, V v) { write("dx", g, v); }
  void dr(int g, V v) { write("dr", g, v); }
  void dstate(int k, V v) { write("dstate", k, v); }
  void dparam(int k, V v) { write("dparam", k, v); }
  void dproduct(int p, V v) { write("dproduct", p, v); }
};

// y += x m for each row, or x m transposed.
inline void multiply(Step& s, Array& x, Array& m, bool transposed, Array& y) {
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t i = 0; i < x.units; ++i) {
      for (int64_t j = 0; j < y.units; ++j) {
        y.at(row, j) += x.at(row, i) * m.data[transposed ? j * x.units + i : i * y.units + j];
      }
    }
  }
}

template <class C>
struct Runner {
  static constexpr CellShape s = C::shape;
  Step& step;

  Array& zero(const char* name, int k) {
    Array& a = step.get(name, k);
    a.data.assign(a.data.size(), 0.0);
    return a;
  }

  void declare() {
    for (int t = 0; t < s.streams; ++t) {
      for (int i = 0; i < s.gates(); ++i) {
        const int g = t * s.gates() + i;
        const bool summed = i < s.summed;
        step.add(summed ? "gate" : "gate_x", g, kHidden);
        step.add(summed ? "da" : "dx", g, kHidden);
        if (!summed && i < s.summed + s.apart) step.add("gate_h", g, kHidden), step.add("dr", g, kHidden);
      }
      for (int i = 0; i < s.products; ++i) {
        const int p = t * s.products + i;
        step.add("product", p, s.product[i].to);
        step.add("dproduct", p, s.product[i].to);
        step.add("doperand", p, s.product[i].from);
      }
    }
    for (int k = 0; k < s.all_states(); ++k) {
      for (const char* name : {"state", "next", "dnext", "dstate"}) step.add(name, k, s.state_width(k));
    }
    for (int k = 0; k < s.all_params(); ++k) {
      for (const char* name : {"param", "dparam"}) step.add(name, k, s.param_width(k));
    }
    for (int k = 0; k < s.noises; ++k) step.add("noise", k, s.noise[k].width);
    for (int k = 0; k < s.saved.count; ++k) step.add("saved", k, s.saved.width[k]);
    for (int k = 0; k < s.values.count; ++k) step.add("value", k, s.values.width[k]);
    for (int k = 0; k < s.back_values.count; ++k) step.add("back_value", k, s.back_values.width[k]);
    for (int k = 0; k < s.totals(); ++k) step.add("total", k, kOne), step.add("sum", k, kOne), zero("sum", k);
    for (int k = 0; k < s.back_totals(); ++k)
      step.add("back_total", k, kOne), step.add("back_sum", k, kOne), zero("back_sum", k);
    for (int k = 0; k < s.batch_sums.count; ++k) {
      step.add("batch_total", k, s.batch_sums.width[k]);
      step.add("batch_sum", k, s.batch_sums.width[k]), zero("batch_sum", k);
    }
    for (int k = 0; k < s.back_batch_sums.count; ++k) {
      step.add("back_batch_total", k, s.back_batch_sums.width[k]);
      step.add("back_batch_sum", k, s.back_batch_sums.width[k]), zero("back_batch_sum", k);
    }
  }

  // The matrices have no width of their own; they come as [to, from].
  Array& matrix(int m) { return step.get("matrix", m); }

  void products(int stage) {
    for (int i = 0; i < s.products; ++i) {
      const Product& p = s.product[i];
      if (p.state >= 0 ? stage != 0 : stage != p.before) continue;
      Array* operand[2];
      for (int t = 0; t < s.streams; ++t) {
        operand[t] = &(p.state >= 0 ? step.get("state", t * s.states.count + p.state) : step.get("value", p.value[t]));
        if (operand[t]->width != p.from) step.fail("a product's operand has another width: ", std::to_string(i));
      }
      multiply(step, *operand[0], matrix(p.matrix), true, zero("product", i));
      if (s.streams == 1) continue;
      Array& tangent = zero("product", s.products + i);
      multiply(step, *operand[1], matrix(p.matrix), true, tangent);
      multiply(step, *operand[0], matrix(s.matrices + p.matrix), true, tangent);
    }
  }

  void returned(int stage) {
    for (int i = 0; i < s.products; ++i) {
      const Product& p = s.product[i];
      if (p.state >= 0 || stage != p.returns) continue;
      Array& first = zero("doperand", i);
      multiply(step, step.get("dproduct", i), matrix(p.matrix), false, first);
      if (s.streams == 1) continue;
      multiply(step, step.get("dproduct", s.products + i), matrix(s.matrices + p.matrix), false, first);
      multiply(step, step.get("dproduct", s.products + i), matrix(p.matrix), false, zero("doperand", s.products + i));
    }
  }

  template <int S>
  void stage(bool back) {
    const Stage& stage = back ? s.backward[S] : s.forward[S];
    back ? returned(S) : products(S);
    const bool batched = s.batch_sums.count > 0;
    for (int64_t row = 0; row < (batched ? 1 : step.rows); ++row) {
      for (int64_t unit = 0; unit < step.units(stage.width); ++unit) {
        Unit u{step, stage, back, row, unit, !batched};
        if (back) {
          if constexpr (S < s.backward_stages) C::template backward<S>(u);
        } else {
          if constexpr (S < s.forward_stages) C::template forward<S>(u);
        }
      }
    }
    for (int k = stage.first_total; k < stage.first_total + stage.totals; ++k) {
      step.get(back ? "back_total" : "total", k).data = step.get(back ? "back_sum" : "sum", k).data;
    }
    // A sum can be read once each row is in it.
    for (int k = 0; k < (back ? s.back_batch_sums.count : s.batch_sums.count); ++k) {
      Array& sum = step.get(back ? "back_batch_sum" : "batch_sum", k);
      if (sum.written[0] > 0) step.get(back ? "back_batch_total" : "batch_total", k).data = sum.data;
    }
    // The engine writes new states over the old, and their gradients likewise.
    for (int k = 0; k < s.all_states(); ++k) {
      Array& made = step.get(back ? "dstate" : "next", k);
      if (made.written[0] > 0) step.get(back ? "dnext" : "state", k).data.assign(made.data.size(), kNaN);
    }
  }

  template <int... S>
  void stages(bool back, std::integer_sequence<int, S...>) {
    (stage<S>(back), ...);
  }

  void forward() { stages(false, std::make_integer_sequence<int, s.forward_stages>()); }
  void backward() { stages(true, std::make_integer_sequence<int, s.backward_stages>()); }

  void check_written() {
    const char* results[] = {"next",   "saved",    "da",    "dx",         "dr",        "dstate",
                             "dparam", "dproduct", "value", "back_value", "batch_sum", "back_batch_sum"};
    for (auto& [key, a] : step.arrays) {
      for (const char* name : results) {
        if (key.substr(0, key.find(' ')) != name) continue;
        for (double times : a.written) {
          if (times != 1) step.fail("not written exactly once: ", key);
        }
      }
    }
  }
};

// Runs a step and its backward. `exchange` is called with each array that goes in (out = 0) or that comes out, by name.
using Exchange = void (*)(const char* name, int64_t count, double* data, int out);

template <class C>
const char* run(int64_t rows, int64_t sizes, const int64_t* size, int64_t matrices, const int64_t* entries,
                Exchange exchange) {
  static Step step;
  step = Step{};
  step.rows = rows;
  step.sizes.assign(size, size + sizes);
  Runner<C> runner{step};
  runner.declare();
  for (int m = 0; m < matrices; ++m) step.arrays[Step::key("matrix", m)].data.assign(entries[m], kNaN);
  for (auto& [key, a] : step.arrays) exchange(key.c_str(), a.data.size(), a.data.data(), 0);
  std::map<int, std::vector<double>> before;
  for (int k = 0; k < C::shape.all_states(); ++k) before[k] = step.get("state", k).data;
  runner.forward();
  for (auto& [k, data] : before) step.get("state", k).data = data;
  runner.backward();
  runner.check_written();
  for (auto& [key, a] : step.arrays) exchange(key.c_str(), a.data.size(), a.data.data(), 1);
  return step.error.c_str();
}

}  // namespace rnnext::mock

#define RUN(name, C)                                                                                    \
  extern "C" const char* run_##name(int64_t rows, int64_t sizes, const int64_t* size, int64_t matrices, \
                                    const int64_t* entries, rnnext::mock::Exchange exchange) {          \
    return rnnext::mock::run<rnnext::mock::C>(rows, sizes, size, matrices, entries, exchange);          \
  }
