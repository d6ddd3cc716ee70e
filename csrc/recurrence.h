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
#include "recurrence_storage.h"

namespace sru {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostSteps = 32;  // between two kept states

// S is how sequences are stored, Compute<S> what they are computed in. Pointers are null where an
// argument is absent.
template <typename S>
struct Inputs {
  using T = Compute<S>;
  Shape shape;
  const S *u, *highway;  // the highway's input: lane u3, x, or absent
  Strides u_strides, highway_strides;
  const T *v, *b, *c0, *mask;
  const int64_t* lengths;
  T scale;  // of the highway's input: alpha for x, 1 for u3
  bool tanh;
};

template <typename S>
struct Forward {
  using T = Compute<S>;
  using Storage = S;
  Inputs<S> in;
  S* h;
  Strides h_strides;
  T* c_n;  // may be in.c0's memory
  T* c;    // the kept states, contiguous rows
  Kept kept;
};

template <typename S>
struct Backward {
  using T = Compute<S>;
  using Storage = S;
  Inputs<S> in;
  const S* dh;
  const T *dc_n, *c;
  Kept kept;
  Strides dh_strides;
  S *du, *dhighway;
  T* dc0;
  Strides dhighway_strides;
  T* sums;  // (4, B, D): gradients of vf, vr, bf, br of every sequence
};

// Calls `run` with a value of the type that stores `dtype`, one of the four that Arguments admits.
template <typename Run>
void with_storage(ScalarType dtype, const Run& run) {
  if (dtype == ScalarType::Double) return run(double{});
  if (dtype == ScalarType::Float) return run(float{});
  if (dtype == ScalarType::BFloat16) return run(BFloat16{});
  run(Half{});
}

template <typename T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline Strides strides_of(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.dim() == 4 ? tensor.stride(2) : 0};
}

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

// The kernels take any strides but one: rows along the last dimension are contiguous.
inline bool has_unit_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return last >= 0 && (tensor.stride(last) == 1 || tensor.size(last) <= 1);
}

inline Tensor unit_stride(const Tensor& tensor) {
  return has_unit_stride(tensor) ? tensor : torch::stable::contiguous(tensor);
}

inline Direction direction_of(const std::string& name) {
  if (name == "forward") return Direction::kForward;
  if (name == "backward") return Direction::kBackward;
  STD_TORCH_CHECK(name == "both", "sru_asr: direction must be forward, backward or both, got ",
                  name);
  return Direction::kBoth;
}

// Holds the tensors (some replaced by contiguous copies) that the pointers of Inputs point into.
struct Arguments {
  Tensor u, b;
  std::optional<Tensor> v, x, c0, lengths, mask;
  bool tanh;
  double alpha;
  Shape shape;
  ScalarType dtype, compute_dtype;

  Arguments(const Tensor& u_, const std::optional<Tensor>& v_, const Tensor& b_,
            const std::optional<Tensor>& x_, const std::optional<Tensor>& c0_,
            const std::optional<Tensor>& lengths_, const std::optional<Tensor>& mask_,
            Direction direction, double alpha_, const std::string& activation)
      : u(unit_stride(u_)),
        b(torch::stable::contiguous(b_)),
        v(contiguous(v_)),
        x(x_ ? std::optional<Tensor>(unit_stride(*x_)) : std::nullopt),
        c0(contiguous(c0_)),
        lengths(contiguous(lengths_)),
        mask(contiguous(mask_)),
        tanh(activation == "tanh"),
        alpha(alpha_),
        dtype(u.scalar_type()),
        compute_dtype(dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float) {
    STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float ||
                        dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                    "sru_asr: u must be float64, float32, bfloat16 or float16, got ",
                    toString(dtype));
    STD_TORCH_CHECK(u.dim() == 4 && (u.size(2) == 3 || u.size(2) == 4),
                    "sru_asr: u must have shape (T, B, 3 or 4, D)");
    shape = {u.size(0), u.size(1), u.size(2), u.size(3), direction};
    STD_TORCH_CHECK(direction != Direction::kBoth || shape.width % 2 == 0,
                    "sru_asr: u must have an even last dimension when bidirectional");
    STD_TORCH_CHECK(tanh || activation == "identity",
                    "sru_asr: activation must be identity or tanh, got ", activation);
    STD_TORCH_CHECK(!x || shape.lanes == 3, "sru_asr: x must be absent when u has four lanes");
    check_like("b", b, u, {2, shape.width}, compute_dtype);
    if (v) check_like("v", *v, u, {2, shape.width}, compute_dtype);
    if (x) check_like("x", *x, u, {shape.steps, shape.batch, shape.width}, dtype);
    if (c0) check_like("c0", *c0, u, {shape.batch, shape.width}, compute_dtype);
    if (mask) check_like("mask", *mask, u, {shape.batch, shape.width}, compute_dtype);
    if (lengths) check_like("lengths", *lengths, u, {shape.batch}, ScalarType::Long);
  }

  template <typename S>
  Inputs<S> inputs() const {
    using T = Compute<S>;
    Inputs<S> in{};
    in.shape = shape;
    in.u = static_cast<const S*>(u.const_data_ptr());
    in.u_strides = strides_of(u);
    in.scale = T(1);
    if (shape.lanes == 4) {
      in.highway = in.u + 3 * in.u_strides.lane;
      in.highway_strides = {in.u_strides.time, in.u_strides.batch, 0};
    } else if (x) {
      in.highway = pointer<S>(x);
      in.highway_strides = strides_of(*x);
      in.scale = static_cast<T>(alpha);
    }
    in.v = pointer<T>(v);
    in.b = static_cast<const T*>(b.const_data_ptr());
    in.c0 = pointer<T>(c0);
    in.mask = pointer<T>(mask);
    in.lengths = pointer<int64_t>(lengths);
    in.tanh = tanh;
    return in;
  }

  static std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
  }
};

inline Kept kept_every(int64_t steps) {
  STD_TORCH_CHECK(steps >= 0 && steps <= kMostSteps, "sru_asr: keep_every must lie in 0..",
                  kMostSteps, ", got ", steps);
  return {steps};
}

// What follows is the body of the operators: their outputs are made here, and what computes them is
// the device's own. `Device` has static function templates forward(call, u), backward(call, u) and
// sum(shape, sums (2, B, D), gradient (2, D), u), which adds up the sequences in their order, and
// fresh(tensor), which prepares the memory of a new output.

template <typename Device>
Tensor new_tensor(const Tensor& u, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  Tensor tensor = torch::stable::new_empty(u, sizes, dtype);
  Device::fresh(tensor);
  return tensor;
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> recurrence_forward(
    const Tensor& u, std::optional<Tensor> v, const Tensor& b, std::optional<Tensor> x,
    std::optional<Tensor> c0, std::optional<Tensor> lengths, std::optional<Tensor> mask,
    bool bidirectional, double alpha, std::string activation, int64_t keep_every) {
  const Arguments args(u, v, b, x, c0, lengths, mask,
                       bidirectional ? Direction::kBoth : Direction::kForward, alpha, activation);
  const Shape& s = args.shape;
  const Kept kept = kept_every(keep_every);
  const Tensor h = new_tensor<Device>(u, {s.steps, s.batch, s.width}, args.dtype);
  const Tensor c_n = new_tensor<Device>(u, {s.batch, s.width}, args.compute_dtype);
  const Tensor c =
      new_tensor<Device>(u, {kept.rows(s.steps), s.batch, s.width}, args.compute_dtype);
  with_storage(args.dtype, [&](auto stored) {
    using S = decltype(stored);
    using T = Compute<S>;
    Device::forward(Forward<S>{args.inputs<S>(), pointer<S>(h), rows_strides(s), pointer<T>(c_n),
                               pointer<T>(c), kept},
                    u);
  });
  return {h, c_n, c};
}

// The same without gradients, into memory that the caller has: `c` holds the state before the first
// step and receives the one after the last; `h` is any view of unit stride in its last dimension.
template <typename Device>
void recurrence_inference(const Tensor& u, std::optional<Tensor> v, const Tensor& b,
                          std::optional<Tensor> x, std::optional<Tensor> lengths, Tensor c,
                          Tensor h, std::string direction, double alpha, std::string activation) {
  const Arguments args(u, v, b, x, c, lengths, std::nullopt, direction_of(direction), alpha,
                       activation);
  const Shape& s = args.shape;
  check_like("h", h, u, {s.steps, s.batch, s.width}, args.dtype);
  // A copy would leave the caller's memory untouched.
  STD_TORCH_CHECK(c.is_contiguous(), "sru_asr: c must be contiguous");
  STD_TORCH_CHECK(has_unit_stride(h), "sru_asr: h must have unit stride in its last dimension");
  with_storage(args.dtype, [&](auto stored) {
    using S = decltype(stored);
    using T = Compute<S>;
    Device::forward(
        Forward<S>{args.inputs<S>(), pointer<S>(h), strides_of(h), pointer<T>(c), nullptr, {0}}, u);
  });
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> recurrence_backward(
    const Tensor& dh, const Tensor& dc_n, const Tensor& u, std::optional<Tensor> v, const Tensor& b,
    std::optional<Tensor> x, std::optional<Tensor> c0, std::optional<Tensor> lengths,
    std::optional<Tensor> mask, const Tensor& c, bool bidirectional, double alpha,
    std::string activation, int64_t keep_every) {
  const Arguments args(u, v, b, x, c0, lengths, mask,
                       bidirectional ? Direction::kBoth : Direction::kForward, alpha, activation);
  const Shape& s = args.shape;
  const Kept kept = kept_every(keep_every);
  STD_TORCH_CHECK(keep_every > 0, "sru_asr: the backward pass needs kept states");
  check_like("the gradient of h", dh, u, {s.steps, s.batch, s.width}, args.dtype);
  check_like("the gradient of c_n", dc_n, u, {s.batch, s.width}, args.compute_dtype);
  check_like("c", c, u, {kept.rows(s.steps), s.batch, s.width}, args.compute_dtype);
  const Tensor dh_rows = unit_stride(dh);
  const Tensor dc_n_rows = torch::stable::contiguous(dc_n);
  const Tensor c_rows = torch::stable::contiguous(c);

  const Tensor du = new_tensor<Device>(u, {s.steps, s.batch, s.lanes, s.width}, args.dtype);
  const Tensor dx = new_tensor<Device>(u, {x ? s.steps : 0, s.batch, s.width}, args.dtype);
  const Tensor dc0 = new_tensor<Device>(u, {s.batch, s.width}, args.compute_dtype);
  const Tensor dv = new_tensor<Device>(u, {2, s.width}, args.compute_dtype);
  const Tensor db = new_tensor<Device>(u, {2, s.width}, args.compute_dtype);
  const Tensor sums = new_tensor<Device>(u, {4, s.batch, s.width}, args.compute_dtype);
  with_storage(args.dtype, [&](auto stored) {
    using S = decltype(stored);
    using T = Compute<S>;
    S* const du_start = pointer<S>(du);
    const bool lane = s.lanes == 4;
    const Backward<S> call{args.inputs<S>(),
                           static_cast<const S*>(dh_rows.const_data_ptr()),
                           static_cast<const T*>(dc_n_rows.const_data_ptr()),
                           static_cast<const T*>(c_rows.const_data_ptr()),
                           kept,
                           strides_of(dh_rows),
                           du_start,
                           lane ? du_start + 3 * s.width : (x ? pointer<S>(dx) : nullptr),
                           pointer<T>(dc0),
                           lane ? lanes_strides(s) : rows_strides(s),
                           pointer<T>(sums)};
    Device::backward(call, u);
    Device::sum(s, call.sums, pointer<T>(dv), u);
    Device::sum(s, call.sums + 2 * s.batch * s.width, pointer<T>(db), u);
  });
  return {du, dv, db, dx, dc0};
}

}  // namespace sru
