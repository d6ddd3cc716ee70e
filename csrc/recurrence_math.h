// The sigmoid and the hyperbolic tangent, in forms a compiler turns into vector code.
//
// On the CPU the fp32 exponential is a polynomial of this file's own: a call to the C library would
// keep the loop over columns scalar. A CUDA device has instructions of its own for fp32. fp64,
// which serves gradient checks, calls the C library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define SRU_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define SRU_INLINE inline __attribute__((always_inline))
#else
#define SRU_INLINE inline
#endif

namespace sru {

// A comparison with NaN is false, so a NaN passes through.
template <typename T>
SRU_INLINE T clamp(T x, T low, T high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// a * b + c. A CUDA device rounds it once and, being told so (setup.py), contracts nothing else:
// which kernel runs depends on the size of the batch, and results must not.
template <typename T>
SRU_INLINE T multiply_add(T a, T b, T c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) = scale * (1 + fraction), with x = n ln 2 + r, scale = 2^n, fraction = exp(r) - 1 and
// |r| <= ln(2) / 2. Kept apart, the two also give exp(x) - 1 without cancellation. x in [-87, 88].
struct Exponential {
  float scale, fraction;
};

SRU_INLINE Exponential exponential(float x) {
  // Adding 1.5 * 2^23 leaves no bits for a fraction: x / ln 2 is rounded to the integer n, which
  // then stands in the low bits of the sum.
  constexpr float kRound = 12582912.0f;
  const float shifted = multiply_add(x, 1.44269504f, kRound);
  const float n = shifted - kRound;
  // ln 2 in two parts; the product with the first, of ten bits, is exact.
  const float r = multiply_add(n, 2.12194440e-4f, multiply_add(n, -0.693359375f, x));
  // (exp(r) - 1 - r) / r^2, minimax for the relative error of exp: 3e-9, a twentieth of an ulp.
  float q = 1.38145394e-3f;
  q = multiply_add(q, r, 8.36874545e-3f);
  q = multiply_add(q, r, 4.16683890e-2f);
  q = multiply_add(q, r, 1.66665211e-1f);
  q = multiply_add(q, r, 4.99999940e-1f);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127u) << 23;  // n + 127 in the exponent's place; what stood above n is shifted out
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return {scale, multiply_add(r * r, q, r)};
}

#if defined(__CUDA_ARCH__)
#define SRU_CUDA_MATH 1

// One instruction each, with relative errors of about 2^-22 and 2^-23. An IEEE division would add a
// slow path to every step.
SRU_INLINE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SRU_INLINE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// As `clamp`, a NaN passes through.
SRU_INLINE float at_most(float x, float high) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(high));
  return y;
}
#elif defined(SRU_CUDA_MATH)  // tests compute on the host what a device would
inline float power_of_two(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float at_most(float x, float high) { return x > high ? high : x; }
#endif

// A gate and its complement. 1 - open would lose the digits of a nearly closed complement.
template <typename T>
struct Gate {
  T open, shut;
};

// The unit of a sigmoid's argument. The exponential of a CUDA device has base two: there -log2(e)
// stands in the parameters of a column already, and no step multiplies by it.
template <typename T>
SRU_INLINE constexpr T gate_unit() {
#if defined(SRU_CUDA_MATH)
  if (std::is_same_v<T, float>) return T(-1.4426950408889634);
#endif
  return T(1);
}

// Of z, given in its unit. With e = exp(-z), open = 1 / (1 + e) and shut = e / (1 + e). The clamp
// keeps e finite.
SRU_INLINE Gate<float> sigmoid(float z) {
#if defined(SRU_CUDA_MATH)
  const float e = power_of_two(at_most(z, 120.0f));
  const float open = reciprocal(1.0f + e);
#else
  const Exponential x = exponential(-clamp(z, -80.0f, 80.0f));
  const float e = x.scale + x.scale * x.fraction;
  const float open = 1.0f / (1.0f + e);
#endif
  return {open, e * open};
}

SRU_INLINE Gate<double> sigmoid(double z) {
  const double e = exp(-clamp(z, -700.0, 700.0));
  const double open = 1.0 / (1.0 + e);
  return {open, e * open};
}

// tanh(x) = (exp(2x) - 1) / (exp(2x) + 1), by way of exp(2x) - 1, which keeps the digits near 0.
SRU_INLINE float hyperbolic_tangent(float x) {
  const Exponential y = exponential(2.0f * clamp(x, -20.0f, 20.0f));
  const float less_one = multiply_add(y.scale, y.fraction, y.scale - 1.0f);
#if defined(SRU_CUDA_MATH)
  return less_one * reciprocal(less_one + 2.0f);
#else
  return less_one / (less_one + 2.0f);
#endif
}

SRU_INLINE double hyperbolic_tangent(double x) { return tanh(x); }

}  // namespace sru
