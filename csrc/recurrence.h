// The arguments of the recurrence as its kernels see them, and the checks both devices share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>

#include "recurrence_layout.h"

namespace sru {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Pointers are null where an argument is absent.
template <typename T>
struct Inputs {
  Shape shape;
  const T *u, *highway;  // the highway's input: lane u3, x, or absent
  Strides u_strides, highway_strides;
  const T *v, *b, *c0, *mask;
  const int64_t* lengths;
  T scale;  // of the highway's input: alpha for x, 1 for u3
  bool tanh;
};

template <typename T>
struct Forward {
  Inputs<T> in;
  T *h, *c_n;
  T* c;  // the state after every step, or null when no gradient will be asked for
};

template <typename T>
struct Backward {
  Inputs<T> in;
  const T *dh, *dc_n, *c;
  Strides dh_strides;
  T *du, *dhighway, *dc0;
  Strides dhighway_strides;
  T* sums;  // (4, B, D): gradients of vf, vr, bf, br of every sequence
};

inline void check_like(const char* name, const Tensor& tensor, const Tensor& u,
                       std::initializer_list<int64_t> sizes, ScalarType dtype) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t dim = 0;
  for (int64_t size : sizes) fits = fits && tensor.size(dim++) == size;
  STD_TORCH_CHECK(fits, "sru_asr: ", name, " does not fit the shape of u");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "sru_asr: ", name, " must be ", toString(dtype),
                  ", got ", toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.device() == u.device(), "sru_asr: ", name, " must be on u's device");
}

// Holds the tensors (some replaced by contiguous copies) that the pointers of Inputs point into.
struct Arguments {
  Tensor u, b;
  std::optional<Tensor> v, x, c0, lengths, mask;
  bool bidirectional, tanh;
  double alpha;
  Shape shape;

  Arguments(const Tensor& u_, std::optional<Tensor> v_, const Tensor& b_, std::optional<Tensor> x_,
            std::optional<Tensor> c0_, std::optional<Tensor> lengths_, std::optional<Tensor> mask_,
            bool bidirectional_, double alpha_, const std::string& activation)
      : u(unit_stride(u_)),
        b(torch::stable::contiguous(b_)),
        v(contiguous(v_)),
        x(x_ ? std::optional<Tensor>(unit_stride(*x_)) : std::nullopt),
        c0(contiguous(c0_)),
        lengths(contiguous(lengths_)),
        mask(contiguous(mask_)),
        bidirectional(bidirectional_),
        tanh(activation == "tanh"),
        alpha(alpha_) {
    STD_TORCH_CHECK(u.dim() == 4 && (u.size(2) == 3 || u.size(2) == 4),
                    "sru_asr: u must have shape (T, B, 3 or 4, D)");
    shape = {u.size(0), u.size(1), u.size(2), u.size(3), bidirectional};
    const ScalarType dtype = u.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "sru_asr: u must be float32 or float64, got ", toString(dtype));
    STD_TORCH_CHECK(!bidirectional || shape.width % 2 == 0,
                    "sru_asr: u must have an even last dimension when bidirectional");
    STD_TORCH_CHECK(tanh || activation == "identity",
                    "sru_asr: activation must be identity or tanh, got ", activation);
    STD_TORCH_CHECK(!x || shape.lanes == 3, "sru_asr: x must be absent when u has four lanes");
    check_like("b", b, u, {2, shape.width}, dtype);
    if (v) check_like("v", *v, u, {2, shape.width}, dtype);
    if (x) check_like("x", *x, u, {shape.steps, shape.batch, shape.width}, dtype);
    if (c0) check_like("c0", *c0, u, {shape.batch, shape.width}, dtype);
    if (mask) check_like("mask", *mask, u, {shape.batch, shape.width}, dtype);
    if (lengths) check_like("lengths", *lengths, u, {shape.batch}, ScalarType::Long);
  }

  template <typename T>
  Inputs<T> inputs() const {
    Inputs<T> in{};
    in.shape = shape;
    in.u = u.const_data_ptr<T>();
    in.u_strides = {u.stride(0), u.stride(1), u.stride(2)};
    in.scale = T(1);
    if (shape.lanes == 4) {
      in.highway = in.u + 3 * in.u_strides.lane;
      in.highway_strides = {u.stride(0), u.stride(1), 0};
    } else if (x) {
      in.highway = x->const_data_ptr<T>();
      in.highway_strides = {x->stride(0), x->stride(1), 0};
      in.scale = static_cast<T>(alpha);
    }
    in.v = v ? v->const_data_ptr<T>() : nullptr;
    in.b = b.const_data_ptr<T>();
    in.c0 = c0 ? c0->const_data_ptr<T>() : nullptr;
    in.mask = mask ? mask->const_data_ptr<T>() : nullptr;
    in.lengths = lengths ? lengths->const_data_ptr<int64_t>() : nullptr;
    in.tanh = tanh;
    return in;
  }

  // The kernels take any strides but one: rows along the last dimension are contiguous.
  static Tensor unit_stride(const Tensor& tensor) {
    const int64_t last = tensor.dim() - 1;
    const bool unit = last >= 0 && (tensor.stride(last) == 1 || tensor.size(last) <= 1);
    return unit ? tensor : torch::stable::contiguous(tensor);
  }

  static std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
  }
};

// The outputs of both operators are made here; what computes them is the device's own.
using ForwardOutputs = std::tuple<Tensor, Tensor, Tensor>;
using BackwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// `Device` has three static function templates: forward(call, u), backward(call, u) and
// sum(shape, sums (2, B, D), gradient (2, D), u), which adds up the sequences in their order.
template <typename Device>
ForwardOutputs recurrence_forward(const Tensor& u, std::optional<Tensor> v, const Tensor& b,
                                  std::optional<Tensor> x, std::optional<Tensor> c0,
                                  std::optional<Tensor> lengths, std::optional<Tensor> mask,
                                  bool bidirectional, double alpha, std::string activation,
                                  bool save_states) {
  const Arguments args(u, v, b, x, c0, lengths, mask, bidirectional, alpha, activation);
  const Shape& s = args.shape;
  Tensor h = torch::stable::new_empty(u, {s.steps, s.batch, s.width});
  Tensor c_n = torch::stable::new_empty(u, {s.batch, s.width});
  Tensor c = torch::stable::new_empty(u, {save_states ? s.steps : 0, s.batch, s.width});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Device::forward(Forward<T>{args.inputs<T>(), h.mutable_data_ptr<T>(), c_n.mutable_data_ptr<T>(),
                               save_states ? c.mutable_data_ptr<T>() : nullptr},
                    u);
  };
  args.u.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  return {h, c_n, c};
}

template <typename Device>
BackwardOutputs recurrence_backward(const Tensor& dh, const Tensor& dc_n, const Tensor& u,
                                    std::optional<Tensor> v, const Tensor& b,
                                    std::optional<Tensor> x, std::optional<Tensor> c0,
                                    std::optional<Tensor> lengths, std::optional<Tensor> mask,
                                    const Tensor& c, bool bidirectional, double alpha,
                                    std::string activation) {
  const Arguments args(u, v, b, x, c0, lengths, mask, bidirectional, alpha, activation);
  const Shape& s = args.shape;
  const ScalarType dtype = args.u.scalar_type();
  check_like("the gradient of h", dh, u, {s.steps, s.batch, s.width}, dtype);
  check_like("the gradient of c_n", dc_n, u, {s.batch, s.width}, dtype);
  check_like("c", c, u, {s.steps, s.batch, s.width}, dtype);
  const Tensor dh_rows = Arguments::unit_stride(dh);
  const Tensor dc_n_rows = torch::stable::contiguous(dc_n);
  const Tensor c_rows = torch::stable::contiguous(c);

  Tensor du = torch::stable::new_empty(u, {s.steps, s.batch, s.lanes, s.width});
  Tensor dx = torch::stable::new_empty(u, {x ? s.steps : 0, s.batch, s.width});
  Tensor dc0 = torch::stable::new_empty(u, {s.batch, s.width});
  Tensor dv = torch::stable::new_empty(u, {2, s.width});
  Tensor db = torch::stable::new_empty(u, {2, s.width});
  Tensor sums = torch::stable::new_empty(u, {4, s.batch, s.width});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    T* const du_start = du.mutable_data_ptr<T>();
    const bool lane = s.lanes == 4;
    const Backward<T> call{args.inputs<T>(),
                           dh_rows.const_data_ptr<T>(),
                           dc_n_rows.const_data_ptr<T>(),
                           c_rows.const_data_ptr<T>(),
                           {dh_rows.stride(0), dh_rows.stride(1), 0},
                           du_start,
                           lane ? du_start + 3 * s.width : (x ? dx.mutable_data_ptr<T>() : nullptr),
                           dc0.mutable_data_ptr<T>(),
                           lane ? lanes_strides(s) : rows_strides(s),
                           sums.mutable_data_ptr<T>()};
    Device::backward(call, u);
    Device::sum(s, call.sums, dv.mutable_data_ptr<T>(), u);
    Device::sum(s, call.sums + 2 * s.batch * s.width, db.mutable_data_ptr<T>(), u);
  };
  dtype == ScalarType::Double ? run(0.0) : run(0.0f);
  return {du, dv, db, dx, dc0};
}

}  // namespace sru
