// The operators' schemas. Kernels register themselves in the file of their device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sru_asr, m) {
  // h (T, B, D), c_n (B, D) and c, the state after every step: (T, B, D), or (0, B, D) when
  // save_states is false.
  m.def(
      "recurrence_forward(Tensor u, Tensor? v, Tensor b, Tensor? x, Tensor? c0, Tensor? lengths, "
      "Tensor? mask, bool bidirectional, float alpha, str activation, bool save_states) "
      "-> (Tensor h, Tensor c_n, Tensor c)");
  // dx is empty, (0, B, D), when there is no x; dv is computed whether there is a v or not.
  m.def(
      "recurrence_backward(Tensor grad_h, Tensor grad_c_n, Tensor u, Tensor? v, Tensor b, "
      "Tensor? x, Tensor? c0, Tensor? lengths, Tensor? mask, Tensor c, bool bidirectional, "
      "float alpha, str activation) "
      "-> (Tensor du, Tensor dv, Tensor db, Tensor dx, Tensor dc0)");
  // Which of its instruction sets the CPU kernel runs: avx512, avx2 or portable.
  m.def("cpu_path() -> str");
}
