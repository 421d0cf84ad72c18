// Derivatives of the op: one autograd function for every cell and every backend.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace rnnext {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The arguments that are not differentiated.
struct Options {
  std::string cell;
  optional<Tensor> batch_sizes, seed;
  int64_t num_layers;
  bool bidirectional;
  double dropout;
};

using Forward = std::vector<Tensor>(std::string_view, const Tensor&, at::TensorList, at::TensorList,
                                    const optional<Tensor>&, const optional<Tensor>&, int64_t, bool, double);
using Backward = std::vector<Tensor>(const c10::List<optional<Tensor>>&, const Tensor&, at::TensorList,
                                     std::string_view, const Tensor&, at::TensorList, at::TensorList,
                                     const optional<Tensor>&, const optional<Tensor>&, int64_t, bool, double,
                                     const c10::List<bool>&);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

std::vector<Tensor> call_forward(const char* name, const Options& o, const Tensor& x, at::TensorList h0,
                                 at::TensorList weights) {
  return find_op<Forward>(name).call(o.cell, x, h0, weights, o.batch_sizes, o.seed, o.num_layers, o.bidirectional,
                                     o.dropout);
}

Tensor or_undefined(const optional<Tensor>& tensor) {
  return tensor.value_or(Tensor());
}

optional<Tensor> or_none(const Tensor& tensor) {
  return tensor.defined() ? optional<Tensor>(tensor) : std::nullopt;
}

bool any_requires_grad(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.requires_grad(); });
}

struct Rnn : torch::autograd::Function<Rnn> {
  static variable_list forward(AutogradContext* context, const Options& o, const Tensor& x, at::TensorList h0,
                               at::TensorList weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list result = call_forward("rnnext::rnn_train", o, x, h0, weights);
    // y and the final states come first; there is one record a layer, and y of each layer but the last.
    const size_t outputs = result.size() - 2 * o.num_layers + 1;

    variable_list saved{result[0], x, or_undefined(o.batch_sizes), or_undefined(o.seed)};
    saved.insert(saved.end(), h0.begin(), h0.end());
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), result.begin() + outputs, result.end());
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    context->saved_data["cell"] = o.cell;
    context->saved_data["num_layers"] = o.num_layers;
    context->saved_data["bidirectional"] = o.bidirectional;
    context->saved_data["dropout"] = o.dropout;
    context->saved_data["states"] = static_cast<int64_t>(h0.size());
    context->saved_data["weights"] = static_cast<int64_t>(weights.size());
    result.resize(outputs);
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const int64_t states = context->saved_data["states"].toInt(), weights = context->saved_data["weights"].toInt();
    const at::TensorList all(saved);
    const at::TensorList h0 = all.slice(4, states), w = all.slice(4 + states, weights);
    const at::TensorList records = all.slice(4 + states + weights);

    c10::List<optional<Tensor>> given;
    for (const Tensor& grad : grads) given.push_back(or_none(grad));
    c10::List<bool> wanted;  // x, h0, weights
    for (int64_t i = 0; i < 1 + states + weights; ++i) wanted.push_back(context->needs_input_grad(i));
    const std::vector<Tensor> result =
        find_op<Backward>("rnnext::rnn_backward")
            .call(given, saved[0], records, context->saved_data["cell"].toStringRef(), saved[1], h0, w,
                  or_none(saved[2]), or_none(saved[3]), context->saved_data["num_layers"].toInt(),
                  context->saved_data["bidirectional"].toBool(), context->saved_data["dropout"].toDouble(), wanted);
    variable_list gradients(1);  // Options has none
    size_t next = 0;
    for (bool is_wanted : wanted) gradients.push_back(is_wanted ? result[next++] : Tensor());
    return gradients;
  }
};

std::vector<Tensor> rnn(std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                        const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                        bool bidirectional, double dropout) {
  const Options o{std::string(cell), batch_sizes, seed, num_layers, bidirectional, dropout};
  if (at::GradMode::is_enabled() && (x.requires_grad() || any_requires_grad(h0) || any_requires_grad(weights))) {
    return Rnn::apply(o, x, h0, weights);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_forward("rnnext::rnn", o, x, h0, weights);
}

// Stands behind the gradients when they were asked for with create_graph=True.
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative> {
  static variable_list forward(AutogradContext*, at::TensorList gradients, at::TensorList) { return gradients.vec(); }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "rnnext: second derivatives of the fused kernels are not implemented; for double "
                                "backward, call rnnext.unswap(model) or use rnnext.reference.rnn");
    return {};
  }
};

std::vector<Tensor> rnn_backward(const c10::List<optional<Tensor>>& grads, const Tensor& y, at::TensorList saved,
                                 std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                                 const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                                 bool bidirectional, double dropout, const c10::List<bool>& output_mask) {
  std::vector<Tensor> result;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    result = find_op<Backward>("rnnext::rnn_backward")
                 .call(grads, y, saved, cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout,
                       output_mask);
  }
  if (!at::GradMode::is_enabled()) return result;
  variable_list sources{y, x};
  for (const optional<Tensor>& grad : grads) sources.push_back(grad.value_or(Tensor()));
  sources.insert(sources.end(), h0.begin(), h0.end());
  sources.insert(sources.end(), weights.begin(), weights.end());
  sources.erase(std::remove_if(sources.begin(), sources.end(), [](const Tensor& t) { return !t.defined(); }),
                sources.end());
  return any_requires_grad(sources) ? NoSecondDerivative::apply(at::TensorList(result), at::TensorList(sources))
                                    : result;
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, Autograd, m) {
  m.impl("rnn", &rnn);
  m.impl("rnn_backward", &rnn_backward);
}

}  // namespace rnnext
