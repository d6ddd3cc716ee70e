// How the numbers of a sequence are stored: float and double as they are, bfloat16 and float16 in
// 16 bits. All arithmetic, and everything that a column keeps through time, is float or double.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "recurrence_math.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace sru {

// Bits alone: the C++ compilers we support do not all have types for them.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What numbers stored as S are computed in.
template <typename S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <typename To, typename From>
SRU_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

SRU_INLINE double widen(double x) { return x; }
SRU_INLINE float widen(float x) { return x; }

SRU_INLINE float widen(BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

// The conversions below are written without branches, for vector code.
SRU_INLINE float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  // Exponent and fraction moved into a float's place, then 2^(127 - 15) restores the exponent, also
  // of a subnormal number. Infinity and NaN have every bit of their exponent set, here as there.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t scaled = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  return bits_as<float>(sign | scaled | (magnitude >= 0x0f800000u ? 0x7f800000u : 0u));
#endif
}

// To the nearest, ties to even.
template <typename S>
SRU_INLINE S narrow(Compute<S> x) {
  return x;
}

template <>
SRU_INLINE BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x == x ? rounded : 0x7fc0u)};  // rounding could carry NaN away
#endif
}

template <>
SRU_INLINE Half narrow<Half>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // A normal result: the exponent moves by 15 - 127, the fraction loses 13 bits.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // A subnormal one: adding 1/2 leaves a fraction in units of 2^-24, rounded by the addition.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and more round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  return {static_cast<uint16_t>(sign | half)};
#endif
}

}  // namespace sru
