// The CUDA operators on the host, thread after thread: sru_cuda_on_host.recurrence_forward and so
// on take tensors on the CPU and run the kernels that a device would.
#include "cuda_on_host.h"
// After what it needs.
#include "recurrence_cuda_choice.cuh"

namespace sru {
namespace {

int64_t multiprocessors = 132;  // of the device to choose kernels for

template <typename Run>
void for_threads(int64_t blocks_x, int64_t blocks_y, int threads, const Run& run) {
  for (blockIdx.y = 0; blockIdx.y < blocks_y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < blocks_x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < static_cast<unsigned>(threads); ++threadIdx.x) run();
    }
  }
}

struct CudaOnHost {
  template <typename Call>
  static void launch(const Call& call) {
    const Shape& s = call.in.shape;
    const Chosen<Call> chosen = choose_kernel(call, static_cast<int>(multiprocessors));
    const int64_t blocks = chosen.blocks(s);
    for_threads(blocks * s.batch, s.directions(), chosen.threads, [&] {
      chosen.kernel(call, static_cast<unsigned>(blocks));
      STD_TORCH_CHECK(copies.size() == 1 && copies.front().empty(),
                      "a thread left copies in flight");
    });
  }

  template <typename S>
  static void forward(const Forward<S>& call, const Tensor&) {
    launch(call);
  }

  template <typename S>
  static void backward(const Backward<S>& call, const Tensor&) {
    launch(call);
  }

  template <typename T>
  static void sum(const Shape& s, const T* sums, T* gradient, const Tensor&) {
    for_threads((s.width + kWarp - 1) / kWarp, 2, kWarp,
                [&] { sum_sequences(sums, gradient, s.batch, s.width); });
  }

  static void fresh(const Tensor&) {}
};

void choose_for(int64_t count) { multiprocessors = count; }

}  // namespace
}  // namespace sru

STABLE_TORCH_LIBRARY(sru_cuda_on_host, m) {
  m.def(
      "recurrence_forward(Tensor u, Tensor? v, Tensor b, Tensor? x, Tensor? c0, Tensor? lengths, "
      "Tensor? mask, bool bidirectional, float alpha, str activation, int keep_every) "
      "-> (Tensor h, Tensor c_n, Tensor c)");
  m.def(
      "recurrence_backward(Tensor grad_h, Tensor grad_c_n, Tensor u, Tensor? v, Tensor b, "
      "Tensor? x, Tensor? c0, Tensor? lengths, Tensor? mask, Tensor c, bool bidirectional, "
      "float alpha, str activation, int keep_every) "
      "-> (Tensor du, Tensor dv, Tensor db, Tensor dx, Tensor dc0)");
  m.def(
      "recurrence_inference(Tensor u, Tensor? v, Tensor b, Tensor? x, Tensor? lengths, "
      "Tensor(a!) c, Tensor(b!) h, str direction, float alpha, str activation) -> ()");
  m.def("choose_for(int multiprocessors) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sru_cuda_on_host, CPU, m) {
  m.impl("recurrence_forward", TORCH_BOX(&sru::recurrence_forward<sru::CudaOnHost>));
  m.impl("recurrence_backward", TORCH_BOX(&sru::recurrence_backward<sru::CudaOnHost>));
  m.impl("recurrence_inference", TORCH_BOX(&sru::recurrence_inference<sru::CudaOnHost>));
}

STABLE_TORCH_LIBRARY_IMPL(sru_cuda_on_host, CompositeExplicitAutograd, m) {
  m.impl("choose_for", TORCH_BOX(&sru::choose_for));
}
