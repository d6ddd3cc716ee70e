// The recurrence on CUDA devices: one thread per column, the direction as a grid dimension.
//
// A thread walks through its column's real steps and then writes zeros over the rest. Neighbouring
// threads hold neighbouring columns, so every lane of every step is read in one unit-stride run.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "recurrence.h"
#include "recurrence_step.h"

namespace sru {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 65535;  // of a grid's second and third dimension

// One sequence, one direction, one column.
struct Task {
  int64_t sequence, column;
  Order order;
};

// Lengths are not checked on the host, which would wait for the device: hold them in range here.
template <typename T>
__device__ Task task_of(const Inputs<T>& in, int64_t sequence, int64_t place) {
  const bool backward = blockIdx.z == 1;
  const int64_t steps = in.shape.steps;
  const int64_t length = in.lengths ? clamp<int64_t>(in.lengths[sequence], 0, steps) : steps;
  return {sequence, (backward ? in.shape.hidden() : 0) + place, order_of(backward, length)};
}

template <typename T>
__device__ Column<T> column_of(const Inputs<T>& in, const Task& task) {
  const int64_t width = in.shape.width, d = task.column;
  return {in.v ? in.v[d] : T(0), in.v ? in.v[width + d] : T(0), in.b[d], in.b[width + d],
          in.mask ? in.mask[task.sequence * width + d] : T(1)};
}

template <typename T>
__device__ Rows<T> rows_of(T* tensor, const Strides& strides, const Task& task, int64_t lane) {
  return rows_of(tensor, strides, task.order, task.sequence, lane, task.column);
}

template <typename T>
__device__ void clear_padding(T* tensor, const Strides& strides, const Task& task, int64_t lane,
                              int64_t steps) {
  T* start = tensor + task.sequence * strides.batch + lane * strides.lane + task.column;
  for (int64_t t = task.order.count; t < steps; ++t) start[t * strides.time] = T(0);
}

template <bool kHighway, bool kTanh, typename T>
__device__ void forward_task(const Forward<T>& call, const Task& task) {
  const Inputs<T>& in = call.in;
  const Strides out = rows_strides(in.shape);
  const Column<T> column = column_of(in, task);
  const Rows<const T> u0 = rows_of(in.u, in.u_strides, task, 0);
  const Rows<const T> uf = rows_of(in.u, in.u_strides, task, 1);
  const Rows<const T> ur = rows_of(in.u, in.u_strides, task, 2);
  const Rows<const T> x = rows_of(in.highway, in.highway_strides, task, 0);
  const Rows<T> h = rows_of(call.h, out, task, 0), states = rows_of(call.c, out, task, 0);
  const int64_t at = task.sequence * in.shape.width + task.column;
  T c = in.c0 ? in.c0[at] : T(0);
  for (int64_t i = 0; i < task.order.count; ++i) {
    const T highway = kHighway ? in.scale * __ldg(x.at(i)) : T(0);
    *h.at(i) =
        forward_step<kTanh>(column, __ldg(u0.at(i)), __ldg(uf.at(i)), __ldg(ur.at(i)), highway, c);
    if (call.c) *states.at(i) = c;
  }
  call.c_n[at] = c;
  clear_padding(call.h, out, task, 0, in.shape.steps);
  if (call.c) clear_padding(call.c, out, task, 0, in.shape.steps);
}

template <bool kHighway, bool kTanh, typename T>
__device__ void backward_task(const Backward<T>& call, const Task& task) {
  const Inputs<T>& in = call.in;
  const Shape& s = in.shape;
  const Strides lanes = lanes_strides(s);
  const Column<T> column = column_of(in, task);
  const Rows<const T> u0 = rows_of(in.u, in.u_strides, task, 0);
  const Rows<const T> uf = rows_of(in.u, in.u_strides, task, 1);
  const Rows<const T> ur = rows_of(in.u, in.u_strides, task, 2);
  const Rows<const T> x = rows_of(in.highway, in.highway_strides, task, 0);
  const Rows<const T> states = rows_of(call.c, rows_strides(s), task, 0);
  const Rows<const T> dh = rows_of(call.dh, call.dh_strides, task, 0);
  const Rows<T> du0 = rows_of(call.du, lanes, task, 0);
  const Rows<T> duf = rows_of(call.du, lanes, task, 1);
  const Rows<T> dur = rows_of(call.du, lanes, task, 2);
  const Rows<T> dx = rows_of(call.dhighway, call.dhighway_strides, task, 0);
  const int64_t at = task.sequence * s.width + task.column, plane = s.batch * s.width;
  const T c0 = in.c0 ? in.c0[at] : T(0);
  T dc = call.dc_n[at];
  T c = task.order.count > 0 ? __ldg(states.at(task.order.count - 1)) : c0;
  ColumnGradient<T> sum{};
  for (int64_t i = task.order.count - 1; i >= 0; --i) {
    const T before = i > 0 ? __ldg(states.at(i - 1)) : c0;
    const T highway = kHighway ? in.scale * __ldg(x.at(i)) : T(0);
    const StepGradient<T> gradient =
        backward_step<kTanh>(column, __ldg(u0.at(i)), __ldg(uf.at(i)), __ldg(ur.at(i)), highway,
                             before, c, __ldg(dh.at(i)), dc, sum);
    *du0.at(i) = gradient.u0;
    *duf.at(i) = gradient.uf;
    *dur.at(i) = gradient.ur;
    if (kHighway) *dx.at(i) = in.scale * gradient.highway;
    c = before;
  }
  call.dc0[at] = dc;
  call.sums[at] = sum.vf;
  call.sums[plane + at] = sum.vr;
  call.sums[2 * plane + at] = sum.bf;
  call.sums[3 * plane + at] = sum.br;
  for (int64_t lane = 0; lane < s.lanes; ++lane) {
    clear_padding(call.du, lanes, task, lane, s.steps);
  }
  if (kHighway && s.lanes == 3) clear_padding(call.dhighway, rows_strides(s), task, 0, s.steps);
}

template <bool kHighway, bool kTanh, typename T>
__device__ void run_task(const Forward<T>& call, const Task& task) {
  forward_task<kHighway, kTanh>(call, task);
}

template <bool kHighway, bool kTanh, typename T>
__device__ void run_task(const Backward<T>& call, const Task& task) {
  backward_task<kHighway, kTanh>(call, task);
}

// Grid: columns of one direction, sequences (in strides, should there be more than a grid holds),
// directions.
template <bool kHighway, bool kTanh, typename Call>
__global__ void __launch_bounds__(kThreads) run_columns(const Call call) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= call.in.shape.hidden()) return;
  for (int64_t b = blockIdx.y; b < call.in.shape.batch; b += gridDim.y) {
    run_task<kHighway, kTanh>(call, task_of(call.in, b, place));
  }
}

// Adds up the sequences of one column in their order: deterministic, without atomics.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_sequences(const T* sums, T* gradient, int64_t batch, int64_t width) {
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (d >= width) return;
  const T* from = sums + blockIdx.y * batch * width + d;
  T sum = 0;
  for (int64_t b = 0; b < batch; ++b) sum += from[b * width];
  gradient[blockIdx.y * width + d] = sum;
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <typename Call>
void launch(const Call& call, const Tensor& u) {
  const Shape& s = call.in.shape;
  if (s.batch == 0 || s.width == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  const dim3 grid(blocks_for(s.hidden()), static_cast<unsigned>(std::min(s.batch, kMaxBlocks)),
                  static_cast<unsigned>(s.directions()));
  const auto kernel =
      call.in.highway
          ? (call.in.tanh ? run_columns<true, true, Call> : run_columns<true, false, Call>)
          : (call.in.tanh ? run_columns<false, true, Call> : run_columns<false, false, Call>);
  kernel<<<grid, kThreads, 0, current_stream(u)>>>(call);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Cuda {
  template <typename T>
  static void forward(const Forward<T>& call, const Tensor& u) {
    launch(call, u);
  }

  template <typename T>
  static void backward(const Backward<T>& call, const Tensor& u) {
    launch(call, u);
  }

  template <typename T>
  static void sum(const Shape& s, const T* sums, T* gradient, const Tensor& u) {
    if (s.width == 0) return;
    const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
    sum_sequences<<<dim3(blocks_for(s.width), 2), kThreads, 0, current_stream(u)>>>(
        sums, gradient, s.batch, s.width);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace sru

STABLE_TORCH_LIBRARY_IMPL(sru_asr, CUDA, m) {
  m.impl("recurrence_forward", TORCH_BOX(&sru::recurrence_forward<sru::Cuda>));
  m.impl("recurrence_backward", TORCH_BOX(&sru::recurrence_backward<sru::Cuda>));
}
