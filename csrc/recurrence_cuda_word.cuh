// What a CUDA thread moves at once: the numbers of one column, or of two neighbouring ones of 16
// bits.
#pragma once

#include <cstddef>

#include "recurrence_storage.h"

namespace sru {

template <size_t kBytes>
struct Raw;
template <>
struct Raw<2> {
  using type = unsigned short;
};
template <>
struct Raw<4> {
  using type = unsigned int;
};
template <>
struct Raw<8> {
  using type = unsigned long long;
};

// The numbers of W neighbouring columns, in one integer: a pair of 16 bits each, kept apart, would
// take two registers.
template <typename S, int W>
struct Word {
  using Bits = typename Raw<sizeof(S) * W>::type;
  Bits bits;

  __device__ __forceinline__ Compute<S> number(int w) const {
    using One = typename Raw<sizeof(S)>::type;
    return widen(bits_as<S>(static_cast<One>(bits >> (w * 8 * sizeof(S)))));
  }
};

template <typename S, int W>
__device__ __forceinline__ Word<S, W> word_of(const Compute<S> (&numbers)[W]) {
  using One = typename Raw<sizeof(S)>::type;
  using Bits = typename Word<S, W>::Bits;
  Bits bits = 0;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    bits |= static_cast<Bits>(bits_as<One>(narrow<S>(numbers[w]))) << (w * 8 * sizeof(S));
  }
  return {bits};
}

}  // namespace sru
