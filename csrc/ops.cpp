// The operators' schemas. Kernels register themselves in the file of their device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sru_asr, m) {
  // u, x and h are float64, float32, bfloat16 or float16; all else is float64 with the first of
  // them and float32 with the others. c are the kept states: every keep_every steps one, in the
  // order of the steps, none when it is 0.
  m.def(
      "recurrence_forward(Tensor u, Tensor? v, Tensor b, Tensor? x, Tensor? c0, Tensor? lengths, "
      "Tensor? mask, bool bidirectional, float alpha, str activation, int keep_every) "
      "-> (Tensor h, Tensor c_n, Tensor c)");
  // dx is empty, (0, B, D), when there is no x; dv is computed whether there is a v or not.
  m.def(
      "recurrence_backward(Tensor grad_h, Tensor grad_c_n, Tensor u, Tensor? v, Tensor b, "
      "Tensor? x, Tensor? c0, Tensor? lengths, Tensor? mask, Tensor c, bool bidirectional, "
      "float alpha, str activation, int keep_every) "
      "-> (Tensor du, Tensor dv, Tensor db, Tensor dx, Tensor dc0)");
  // Without gradients, into given memory: c is the state before and after, h the output.
  m.def(
      "recurrence_inference(Tensor u, Tensor? v, Tensor b, Tensor? x, Tensor? lengths, "
      "Tensor(a!) c, Tensor(b!) h, str direction, float alpha, str activation) -> ()");
  // Makes the first touch of large, freshly allocated memory cheaper; on the CPU alone.
  m.def("prepare(Tensor(a!) memory) -> ()");
  // Which of its instruction sets the CPU kernel runs: avx512, avx2 or portable.
  m.def("cpu_path() -> str");
}
