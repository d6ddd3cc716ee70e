// The operators on CUDA devices: kernels are chosen and launched here. Nothing waits for the
// device, and memory comes from PyTorch alone, so all of it can be captured in a CUDA graph.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <limits>

#include "recurrence.h"
#include "recurrence_cuda_choice.cuh"

namespace sru {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <typename Call>
void launch(const Call& call, const Tensor& u) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  const Shape& s = call.in.shape;
  if (s.batch == 0 || s.width == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  int multiprocessors = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                        u.get_device_index()));
  const Chosen<Call> chosen = choose_kernel(call, multiprocessors);
  const int64_t blocks = chosen.blocks(s);
  STD_TORCH_CHECK(s.steps <= kMost - 2 * kStages && blocks <= kMost / s.batch,
                  "sru_asr: u is too large for one launch");
  // Rings limit how many blocks a multiprocessor holds: leave them all of the room.
  if (chosen.has_ring()) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(chosen.kernel,
                                        cudaFuncAttributePreferredSharedMemoryCarveout,
                                        cudaSharedmemCarveoutMaxShared));
  }
  const dim3 grid(static_cast<unsigned>(blocks * s.batch), static_cast<unsigned>(s.directions()));
  chosen.kernel<<<grid, chosen.threads, static_cast<size_t>(chosen.shared), current_stream(u)>>>(
      call, static_cast<unsigned>(blocks));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Cuda {
  template <typename S>
  static void forward(const Forward<S>& call, const Tensor& u) {
    launch(call, u);
  }

  template <typename S>
  static void backward(const Backward<S>& call, const Tensor& u) {
    launch(call, u);
  }

  template <typename T>
  static void sum(const Shape& s, const T* sums, T* gradient, const Tensor& u) {
    if (s.width == 0) return;
    const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
    const dim3 grid(static_cast<unsigned>((s.width + kWarp - 1) / kWarp), 2);
    sum_sequences<<<grid, kWarp, 0, current_stream(u)>>>(sums, gradient, s.batch, s.width);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void fresh(const Tensor&) {}
};

}  // namespace
}  // namespace sru

STABLE_TORCH_LIBRARY_IMPL(sru_asr, CUDA, m) {
  m.impl("recurrence_forward", TORCH_BOX(&sru::recurrence_forward<sru::Cuda>));
  m.impl("recurrence_backward", TORCH_BOX(&sru::recurrence_backward<sru::Cuda>));
  m.impl("recurrence_inference", TORCH_BOX(&sru::recurrence_inference<sru::Cuda>));
}
