// One step of the recurrence and its gradient, for one column (one sequence, one hidden dimension).
//
// This is the only place where the equations stand. The CPU and the CUDA kernels loop over these
// two functions, so a test of either tests the other's arithmetic.
#pragma once

#include "recurrence_math.h"

namespace sru {

// What a column keeps through time: recurrent weights and biases, in the unit of `sigmoid`'s
// argument, and the dropout mask.
template <typename T>
struct Column {
  T vf, vr, bf, br, mask;
};

// The argument of a gate's sigmoid.
template <typename T>
SRU_INLINE T gate_argument(T u, T v, T c, T b) {
  return multiply_add(v, c, multiply_add(gate_unit<T>(), u, b));
}

//   f = sigmoid(uf + vf c' + bf)       c' is the state before this step, c the one after it
//   r = sigmoid(ur + vr c' + br)
//   c = f c' + (1 - f) u0
//   h = x + (g(c) - x) m r             x is the highway's input, m the mask
//
// Takes the state in `c`, leaves the new one there and returns h.
template <bool kTanh, typename T>
SRU_INLINE T forward_step(const Column<T>& p, T u0, T uf, T ur, T highway, T& c) {
  const Gate<T> f = sigmoid(gate_argument(uf, p.vf, c, p.bf));
  const Gate<T> r = sigmoid(gate_argument(ur, p.vr, c, p.br));
  c = multiply_add(f.open, c, f.shut * u0);
  const T g = kTanh ? hyperbolic_tangent(c) : c;
  return multiply_add(g - highway, p.mask * r.open, highway);
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
  const Gate<T> f = sigmoid(gate_argument(uf, p.vf, c_before, p.bf));
  const Gate<T> r = sigmoid(gate_argument(ur, p.vr, c_before, p.br));
  const T g = kTanh ? hyperbolic_tangent(c) : c;
  const T dg = dh * p.mask * r.open;

  const T dzr = dg * (g - highway) * r.shut;
  const T dstate = kTanh ? multiply_add(dg, multiply_add(-g, g, T(1)), dc) : dc + dg;
  const T du0 = dstate * f.shut;
  const T dzf = du0 * ((c_before - u0) * f.open);

  sum.vf = multiply_add(dzf, c_before, sum.vf);
  sum.vr = multiply_add(dzr, c_before, sum.vr);
  sum.bf += dzf;
  sum.br += dzr;
  const T through_gates = multiply_add(dzf, p.vf, dzr * p.vr) * (1 / gate_unit<T>());
  dc = multiply_add(dstate, f.open, through_gates);
  return {du0, dzf, dzr, dh - dg};
}

}  // namespace sru
