// One step of the recurrence and its gradient, for one column (one sequence, one hidden dimension).
//
// This is the only place where the equations stand. The CPU and the CUDA kernels loop over these
// two functions, so a test of either tests the other's arithmetic.
#pragma once

#include "recurrence_math.h"

namespace sru {

// What a column keeps through time: recurrent weights, biases and the dropout mask.
template <typename T>
struct Column {
  T vf, vr, bf, br, mask;
};

//   f = sigmoid(uf + vf c' + bf)       c' is the state before this step, c the one after it
//   r = sigmoid(ur + vr c' + br)
//   c = f c' + (1 - f) u0
//   h = x + (g(c) - x) m r             x is the highway's input, m the mask
//
// Takes the state in `c`, leaves the new one there and returns h.
template <bool kTanh, typename T>
SRU_INLINE T forward_step(const Column<T>& p, T u0, T uf, T ur, T highway, T& c) {
  const Gate<T> f = sigmoid(p.vf * c + (uf + p.bf));
  const Gate<T> r = sigmoid(p.vr * c + (ur + p.br));
  c = f.open * c + f.shut * u0;
  const T g = kTanh ? hyperbolic_tangent(c) : c;
  return highway + (g - highway) * (p.mask * r.open);
}

// Gradients of one step's own inputs.
template <typename T>
struct StepGradient {
  T u0, uf, ur, highway;
};

// Gradients of a column's parameters, summed over its steps.
template <typename T>
struct ColumnGradient {
  T vf, vr, bf, br;
};

// With dh the gradient of this step's output and dc that of its state c through all later steps:
//
//   from h:   dx  = dh (1 - m r)
//             dr  = dh m (g - x)               dzr = dr r (1 - r)      zr: argument of r's sigmoid
//             dc += dh m r g'(c)               g' = 1, or 1 - g^2 for tanh
//   from c:   df  = dc (c' - u0)               dzf = df f (1 - f)      zf: argument of f's sigmoid
//             du0 = dc (1 - f)
//   and       duf = dzf,  dbf += dzf,  dvf += dzf c'        likewise for r
//             dc' = dc f + dzf vf + dzr vr     what the step before receives
//
// Takes dc in `dc` and leaves dc' there.
template <bool kTanh, typename T>
SRU_INLINE StepGradient<T> backward_step(const Column<T>& p, T u0, T uf, T ur, T highway,
                                         T c_before, T c, T dh, T& dc, ColumnGradient<T>& sum) {
  const Gate<T> f = sigmoid(p.vf * c_before + (uf + p.bf));
  const Gate<T> r = sigmoid(p.vr * c_before + (ur + p.br));
  const T g = kTanh ? hyperbolic_tangent(c) : c;
  const T dhm = dh * p.mask;

  const T dzr = dhm * (g - highway) * (r.open * r.shut);
  const T dstate = dc + dhm * r.open * (kTanh ? 1 - g * g : T(1));
  const T dzf = dstate * (c_before - u0) * (f.open * f.shut);

  sum.vf += dzf * c_before;
  sum.vr += dzr * c_before;
  sum.bf += dzf;
  sum.br += dzr;
  dc = dstate * f.open + (dzf * p.vf + dzr * p.vr);
  return {dstate * f.shut, dzf, dzr, dh - dhm * r.open};
}

}  // namespace sru
