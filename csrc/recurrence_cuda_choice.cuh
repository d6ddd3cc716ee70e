// Which kernel serves a call.
#pragma once

#include "recurrence_cuda_kernels.cuh"

namespace sru {

// A kernel, the threads of its blocks, the columns of its threads, and the bytes of shared memory
// that its launch asks for.
template <typename Call>
struct Chosen {
  void (*kernel)(Call, unsigned);
  int threads, columns;
  int64_t shared;

  bool has_ring() const { return threads == kWarp; }

  // For the columns of one sequence and direction.
  int64_t blocks(const Shape& s) const {
    return (s.hidden() + threads * columns - 1) / (threads * columns);
  }
};

// Whether rows can be moved in words of two columns.
template <typename S>
bool paired(const S* tensor, const Strides& strides) {
  return !tensor || (reinterpret_cast<uintptr_t>(tensor) % (2 * sizeof(S)) == 0 &&
                     strides.time % 2 == 0 && strides.batch % 2 == 0 && strides.lane % 2 == 0);
}

template <typename S>
bool paired(const Inputs<S>& in) {
  return in.shape.hidden() % 2 == 0 && paired(in.u, in.u_strides) &&
         paired(in.highway, in.highway_strides);
}

template <typename S>
bool paired(const Forward<S>& call) {
  return paired(call.in) && paired(call.h, call.h_strides) && paired(call.c, {});
}

template <typename S>
bool paired(const Backward<S>& call) {
  return paired(call.in) && paired(call.dh, call.dh_strides) &&
         paired(call.du, lanes_strides(call.in.shape)) &&
         paired(call.dhighway, call.dhighway_strides) && paired(call.c, {}) &&
         paired(call.in.c0, {});
}

// Asynchronous copies move at least four bytes.
template <typename S>
constexpr int kColumns = sizeof(S) < 4 ? 2 : 1;

// Whether what registers hold ahead keeps the memory of a device busy.
template <typename S>
bool registers_fill_memory(const Forward<S>& call, int multiprocessors) {
  constexpr int64_t kBytesInFlight = 26 << 10;                            // of one multiprocessor
  constexpr int64_t kBytesAhead = kAhead<S> * kForwardLanes * sizeof(S);  // of one column
  const int64_t columns = call.in.shape.batch * call.in.shape.width;
  return columns * kBytesAhead >= multiprocessors * kBytesInFlight;
}

template <bool kTanh, typename S>
Chosen<Forward<S>> choose(const Forward<S>& call, int multiprocessors) {
  if constexpr (sizeof(S) <= 4) {
    const bool ring = sizeof(S) < 4 ? paired(call) : !registers_fill_memory(call, multiprocessors);
    if (ring) return {forward_ring<kTanh, kColumns<S>, S>, kWarp, kColumns<S>, 0};
  }
  return {forward_registers<kTanh, 1, S>, kBlock, 1, 0};
}

template <bool kTanh, typename S>
Chosen<Backward<S>> choose(const Backward<S>& call, int) {
  if constexpr (sizeof(S) <= 4) {
    constexpr int kW = kColumns<S>;
    if (sizeof(S) == 4 || paired(call)) {
      if (call.kept.every == 1) return {backward_ring<kTanh, kW, S>, kWarp, kW, 0};
      return {backward_recomputing_ring<kTanh, kW, S>, kWarp, kW,
              recomputing_bytes<S, kW>(call.kept)};
    }
  }
  if constexpr (sizeof(S) != 4) return {backward_registers<kTanh, 1, S>, kBlock, 1, 0};
}

template <typename Call>
Chosen<Call> choose_kernel(const Call& call, int multiprocessors) {
  return call.in.tanh ? choose<true>(call, multiprocessors) : choose<false>(call, multiprocessors);
}

}  // namespace sru
