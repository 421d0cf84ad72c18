// Derivatives of the op: one autograd function for every cell and every backend.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "cpu/registry.h"

namespace rnnext {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor or_undefined(const optional<Tensor>& tensor) {
  return tensor.value_or(Tensor());
}

optional<Tensor> or_none(const Tensor& tensor) {
  return tensor.defined() ? optional<Tensor>(tensor) : std::nullopt;
}

// The arguments that are not differentiated.
struct Options {
  std::string cell;
  optional<Tensor> batch_sizes, seed;
  int64_t num_layers = 1;
  bool bidirectional = false;
  double dropout = 0;
  std::vector<int64_t> sizes;
  optional<at::ScalarType> operand_dtype;
  int64_t checkpoint_every = 0;

  // All but the tensors.
  void save(AutogradContext* context) const {
    context->saved_data["cell"] = cell;
    context->saved_data["num_layers"] = num_layers;
    context->saved_data["bidirectional"] = bidirectional;
    context->saved_data["dropout"] = dropout;
    context->saved_data["sizes"] = sizes;
    context->saved_data["operand_dtype"] = operand_dtype;
    context->saved_data["checkpoint_every"] = checkpoint_every;
  }

  static Options saved(AutogradContext* context, const Tensor& batch_sizes, const Tensor& seed) {
    auto& data = context->saved_data;
    return {data["cell"].toStringRef(),
            or_none(batch_sizes),
            or_none(seed),
            data["num_layers"].toInt(),
            data["bidirectional"].toBool(),
            data["dropout"].toDouble(),
            data["sizes"].toIntVector(),
            data["operand_dtype"].toOptional<at::ScalarType>(),
            data["checkpoint_every"].toInt()};
  }
};

using Forward = std::vector<Tensor>(std::string_view, const Tensor&, at::TensorList, at::TensorList,
                                    const optional<Tensor>&, const optional<Tensor>&, int64_t, bool, double,
                                    at::OptionalIntArrayRef, optional<at::ScalarType>, int64_t);
using Backward = std::vector<Tensor>(const c10::List<optional<Tensor>>&, const Tensor&, at::TensorList,
                                     std::string_view, const Tensor&, at::TensorList, at::TensorList,
                                     const optional<Tensor>&, const optional<Tensor>&, int64_t, bool, double,
                                     at::IntArrayRef, const c10::List<bool>&, int64_t, optional<at::ScalarType>,
                                     int64_t);
using Jvp = std::vector<Tensor>(std::string_view, const Tensor&, at::TensorList, at::TensorList, const Tensor&,
                                at::TensorList, at::TensorList, const optional<Tensor>&, const optional<Tensor>&,
                                int64_t, bool, double, at::IntArrayRef, optional<at::ScalarType>, int64_t);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

std::vector<Tensor> call_forward(bool training, const Options& o, const Tensor& x, at::TensorList h0,
                                 at::TensorList weights) {
  // Looked up once: that takes a good part of a small step.
  static const auto rnn = find_op<Forward>("rnnext::rnn"), rnn_train = find_op<Forward>("rnnext::rnn_train");
  return (training ? rnn_train : rnn)
      .call(o.cell, x, h0, weights, o.batch_sizes, o.seed, o.num_layers, o.bidirectional, o.dropout, o.sizes,
            o.operand_dtype, o.checkpoint_every);
}

std::vector<Tensor> call_backward(const Options& o, const c10::List<optional<Tensor>>& grads, const Tensor& y,
                                  at::TensorList saved, const Tensor& x, at::TensorList h0, at::TensorList weights,
                                  const c10::List<bool>& wanted, int64_t samples = 0) {
  static const auto rnn_backward = find_op<Backward>("rnnext::rnn_backward");
  return rnn_backward.call(grads, y, saved, o.cell, x, h0, weights, o.batch_sizes, o.seed, o.num_layers,
                           o.bidirectional, o.dropout, o.sizes, wanted, samples, o.operand_dtype, o.checkpoint_every);
}

bool any_requires_grad(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.requires_grad(); });
}

struct Rnn : torch::autograd::Function<Rnn> {
  static variable_list forward(AutogradContext* context, const Options& o, const Tensor& x, at::TensorList h0,
                               at::TensorList weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list result = call_forward(true, o, x, h0, weights);
    // y and the final states come first; there is one record a layer, and y of each layer but the last.
    const size_t outputs = result.size() - 2 * o.num_layers + 1;
    // Sums over sequences are the last output, and saved as well.
    const size_t sums = cell_named(o.cell.substr(0, o.cell.find('.'))).mixes_sequences();

    variable_list saved{result[0], x, or_undefined(o.batch_sizes), or_undefined(o.seed)};
    saved.insert(saved.end(), h0.begin(), h0.end());
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), result.begin() + outputs - sums, result.end());
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    o.save(context);
    context->saved_data["states"] = static_cast<int64_t>(h0.size());
    context->saved_data["weights"] = static_cast<int64_t>(weights.size());
    result.resize(outputs);
    if (sums) context->mark_non_differentiable({result.back()});
    context->saved_data["grads"] = static_cast<int64_t>(outputs - sums);
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const int64_t states = context->saved_data["states"].toInt(), weights = context->saved_data["weights"].toInt();
    const at::TensorList all(saved);
    const at::TensorList h0 = all.slice(4, states), w = all.slice(4 + states, weights);
    const at::TensorList records = all.slice(4 + states + weights);

    c10::List<optional<Tensor>> given;
    for (int64_t i = 0; i < context->saved_data["grads"].toInt(); ++i) given.push_back(or_none(grads[i]));
    c10::List<bool> wanted;  // x, h0, weights
    for (int64_t i = 0; i < 1 + states + weights; ++i) wanted.push_back(context->needs_input_grad(i));
    const Options o = Options::saved(context, saved[2], saved[3]);
    const std::vector<Tensor> result = call_backward(o, given, saved[0], records, saved[1], h0, w, wanted);
    variable_list gradients(1);  // Options has none
    size_t next = 0;
    for (bool is_wanted : wanted) gradients.push_back(is_wanted ? result[next++] : Tensor());
    return gradients;
  }
};

std::vector<Tensor> rnn(std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                        const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                        bool bidirectional, double dropout, at::OptionalIntArrayRef sizes,
                        optional<at::ScalarType> operand_dtype, int64_t checkpoint_every) {
  const std::vector<int64_t> all_sizes = sizes.value_or(at::IntArrayRef()).vec();
  const Options o{std::string(cell), batch_sizes, seed,          num_layers,      bidirectional,
                  dropout,           all_sizes,   operand_dtype, checkpoint_every};
  if (at::GradMode::is_enabled() && (x.requires_grad() || any_requires_grad(h0) || any_requires_grad(weights))) {
    return Rnn::apply(o, x, h0, weights);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_forward(false, o, x, h0, weights);
}

// Here instead of in Python, where each change of form, and each list, costs a good part of a small step.
std::vector<Tensor> rnn_step(std::string_view cell, const Tensor& x, at::TensorList h0, const Tensor& w_ih,
                             const Tensor& w_hh, const optional<Tensor>& b_ih, const optional<Tensor>& b_hh) {
  const bool batched = x.dim() == 2;
  const auto with_time = [&](const Tensor& t) { return batched ? t.unsqueeze(0) : t.unsqueeze(0).unsqueeze(0); };
  std::vector<Tensor> initial, weights{w_ih, w_hh};
  for (const Tensor& state : h0) initial.push_back(with_time(state));
  for (const optional<Tensor>* bias : {&b_ih, &b_hh}) {
    if (bias->has_value()) weights.push_back(**bias);
  }
  const Options o{.cell = std::string(cell)};
  std::vector<Tensor> result = call_forward(false, o, with_time(x), initial, weights);
  result.erase(result.begin());  // y, which is h
  for (Tensor& state : result) state = batched ? state.squeeze(0) : state.squeeze(0).squeeze(0);
  return result;
}

// The gradients as a function of the output gradients g, x, h0 and weights: J^T g for the Jacobian J of rnn. Of a
// cotangent v, J v is a forward-mode derivative (rnn_jvp), and <v, J^T g> = <J v, g>: so the gradient that reaches g is
// J v itself, and the gradients that reach x, h0 and weights are those of <J v, g>.
struct RnnBackward : torch::autograd::Function<RnnBackward> {
  // What is not differentiated. y and saved follow from the inputs; `given`: which output gradients there are.
  struct Arguments {
    Options options;
    Tensor y;
    std::vector<Tensor> saved;
    c10::List<bool> given, wanted;
  };

  static variable_list forward(AutogradContext* context, const Arguments& a, at::TensorList grads, const Tensor& x,
                               at::TensorList h0, at::TensorList weights) {
    variable_list saved{x, or_undefined(a.options.batch_sizes), or_undefined(a.options.seed)};
    for (const at::TensorList& list : {h0, weights, grads}) saved.insert(saved.end(), list.begin(), list.end());
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    a.options.save(context);
    context->saved_data["states"] = static_cast<int64_t>(h0.size());
    context->saved_data["weights"] = static_cast<int64_t>(weights.size());
    context->saved_data["given"] = a.given;
    context->saved_data["wanted"] = a.wanted;

    c10::List<optional<Tensor>> all;
    size_t next = 0;
    for (bool given : a.given) all.push_back(given ? optional<Tensor>(grads[next++]) : std::nullopt);
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(a.options, all, a.y, a.saved, x, h0, weights, a.wanted);
  }

  static variable_list backward(AutogradContext* context, const variable_list& cotangents) {
    const variable_list saved = context->get_saved_variables();
    const int64_t states = context->saved_data["states"].toInt(), weights = context->saved_data["weights"].toInt();
    const c10::List<bool> given = context->saved_data["given"].toBoolList();
    const c10::List<bool> wanted = context->saved_data["wanted"].toBoolList();
    const bool create_graph = at::GradMode::is_enabled();
    const int64_t grads = saved.size() - 3 - states - weights, inputs = 1 + states + weights;

    // Aliases: the gradient must not flow from one input into another one that it was made of.
    variable_list primals, tangents, needed;
    size_t next = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      const Tensor& input = saved[i == 0 ? 0 : i + 2];
      const bool needs = context->needs_input_grad(grads + i);
      primals.push_back(create_graph ? input.view_as(input) : input.detach().requires_grad_(needs));
      if (needs) needed.push_back(primals.back());
      const Tensor cotangent = wanted[i] ? cotangents[next++] : Tensor();
      tangents.push_back(cotangent.defined() ? cotangent : at::zeros_like(input));
    }
    std::vector<Tensor> result;
    {
      const at::AutoGradMode enable(true);
      const at::TensorList p(primals), t(tangents);
      const Options o = Options::saved(context, saved[1], saved[2]);
      result = find_op<Jvp>("rnnext::rnn_jvp")
                   .call(o.cell, primals[0], p.slice(1, states), p.slice(1 + states, weights), tangents[0],
                         t.slice(1, states), t.slice(1 + states, weights), o.batch_sizes, o.seed, o.num_layers,
                         o.bidirectional, o.dropout, o.sizes, o.operand_dtype, o.checkpoint_every);
    }
    variable_list outputs, output_grads;
    for (size_t i = 0; i < given.size(); ++i) {
      if (!given[i]) continue;
      outputs.push_back(result[i]);
      output_grads.push_back(saved[3 + states + weights + output_grads.size()]);
    }
    variable_list input_grads;
    if (!needed.empty()) {
      input_grads = torch::autograd::grad(outputs, needed, output_grads, /*retain_graph=*/create_graph, create_graph,
                                          /*allow_unused=*/true);
    }
    variable_list gradients(1);  // Arguments has none
    for (const Tensor& output : outputs) gradients.push_back(create_graph ? output : output.detach());
    next = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      gradients.push_back(context->needs_input_grad(grads + i) ? input_grads[next++] : Tensor());
    }
    return gradients;
  }
};

std::vector<Tensor> rnn_backward(const c10::List<optional<Tensor>>& grads, const Tensor& y, at::TensorList saved,
                                 std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                                 const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                                 bool bidirectional, double dropout, at::IntArrayRef sizes,
                                 const c10::List<bool>& output_mask, int64_t samples,
                                 optional<at::ScalarType> operand_dtype, int64_t checkpoint_every) {
  const Options o{std::string(cell), batch_sizes, seed,          num_layers,      bidirectional,
                  dropout,           sizes.vec(), operand_dtype, checkpoint_every};
  std::vector<Tensor> defined;
  c10::List<bool> given;
  for (const optional<Tensor>& grad : grads) {
    given.push_back(grad.has_value());
    if (grad) defined.push_back(*grad);
  }
  if (at::GradMode::is_enabled() &&
      (x.requires_grad() || any_requires_grad(defined) || any_requires_grad(h0) || any_requires_grad(weights))) {
    TORCH_CHECK(samples == 0, "rnnext: rnn_backward with samples can't be differentiated; differentiate each alone");
    const RnnBackward::Arguments arguments{o, y, saved.vec(), given, output_mask};
    return RnnBackward::apply(arguments, at::TensorList(defined), x, h0, weights);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(o, grads, y, saved, x, h0, weights, output_mask, samples);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, Autograd, m) {
  m.impl("rnn", &rnn);
  m.impl("rnn_backward", &rnn_backward);
}

TORCH_LIBRARY_IMPL(rnnext, CompositeImplicitAutograd, m) {
  m.impl("rnn_step", &rnn_step);
}

}  // namespace rnnext
