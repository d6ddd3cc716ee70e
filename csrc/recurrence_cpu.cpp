// The recurrence on the CPU: vector code over the hidden dimension, threads over everything else.
//
// A task is one sequence, one direction and a span of columns; it walks through time once, and at
// every step over its span in blocks, whose state stays in the first-level cache. What a column
// computes depends neither on how many tasks there are nor on who runs them, so results are the
// same bit for bit with any number of threads and in any batch.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "recurrence.h"
#include "recurrence_step.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SRU_X86 1
#endif

namespace sru {
namespace {

// Columns per vector loop: wide blocks hide the latency of the chain of states behind one another,
// narrow ones keep the work that is wasted on a remainder small.
constexpr int kWide = 64;
constexpr int kNarrow = 16;
constexpr int64_t kSpan = 512;

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// What a span's columns keep through time. The remainder of the last block is zero.
template <typename T>
struct Span {
  alignas(64) T vf[kSpan], vr[kSpan], bf[kSpan], br[kSpan], mask[kSpan];
  alignas(64) T state[kSpan];  // c going forward, dc going backward
};

template <typename T>
struct Sums {
  alignas(64) T vf[kSpan], vr[kSpan], bf[kSpan], br[kSpan];
};

// One sequence, one direction, `count` columns from `column` on.
struct Task {
  int64_t sequence, column, count;
  Order order;
};

template <typename T>
SRU_INLINE void load(T* to, const T* from, int64_t count, T otherwise) {
  const int64_t padded = round_up(count, kNarrow);
  for (int64_t i = 0; i < padded; ++i) to[i] = from && i < count ? from[i] : otherwise;
}

template <typename T>
SRU_INLINE void load_span(Span<T>& span, const Inputs<T>& in, const Task& task, const T* state) {
  const int64_t width = in.shape.width, n = task.count;
  const T *v = in.v ? in.v + task.column : nullptr, *b = in.b + task.column;
  const int64_t at = task.sequence * width + task.column;
  load(span.vf, v, n, T(0));
  load(span.vr, v ? v + width : nullptr, n, T(0));
  load(span.bf, b, n, T(0));
  load(span.br, b + width, n, T(0));
  load(span.mask, in.mask ? in.mask + at : nullptr, n, T(1));
  load(span.state, state ? state + at : nullptr, n, T(0));
}

template <typename T>
SRU_INLINE Column<T> column_of(const Span<T>& span, int64_t i) {
  return {span.vf[i], span.vr[i], span.bf[i], span.br[i], span.mask[i]};
}

// A row of one block: the tensor's own, or, where fewer columns remain than a block has, a copy in
// a buffer, so that every column goes through the same code.
template <int kBlock, typename T>
struct Read {
  alignas(64) T buffer[kBlock];
  const T* row;

  SRU_INLINE Read(const T* tensor, int64_t count) : row(tensor) {
    if (count >= kBlock || !tensor) return;
    std::memset(buffer, 0, sizeof(buffer));
    std::memcpy(buffer, tensor, count * sizeof(T));
    row = buffer;
  }
};

template <int kBlock, typename T>
struct Write {
  alignas(64) T buffer[kBlock];
  T *tensor, *row;
  int64_t count;

  SRU_INLINE Write(T* to, int64_t columns)
      : tensor(to), row(columns < kBlock ? buffer : to), count(columns) {}
  SRU_INLINE void finish() const {
    if (row != tensor) std::memcpy(tensor, row, count * sizeof(T));
  }
};

// The rows of one step, at the span's first column. Null: absent.
template <typename T>
struct ForwardRows {
  const T *u0, *uf, *ur, *highway;
  T *h, *c;
};

template <typename T>
struct BackwardRows {
  const T *u0, *uf, *ur, *highway, *c_before, *c, *dh;
  T *du0, *duf, *dur, *dhighway;
};

template <int kBlock, bool kHighway, bool kTanh, typename T>
SRU_INLINE void forward_block(Span<T>& span, int64_t from, int64_t count, T scale,
                              const ForwardRows<T>& rows) {
  const Read<kBlock, T> u0(rows.u0 + from, count), uf(rows.uf + from, count),
      ur(rows.ur + from, count), x(kHighway ? rows.highway + from : nullptr, count);
  const Write<kBlock, T> h(rows.h + from, count);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const T highway = kHighway ? scale * x.row[i] : T(0);
    h.row[i] = forward_step<kTanh>(column_of(span, from + i), u0.row[i], uf.row[i], ur.row[i],
                                   highway, span.state[from + i]);
  }
  h.finish();
  if (rows.c) std::memcpy(rows.c + from, span.state + from, count * sizeof(T));
}

template <int kBlock, bool kHighway, bool kTanh, typename T>
SRU_INLINE void backward_block(Span<T>& span, Sums<T>& sums, int64_t from, int64_t count, T scale,
                               const BackwardRows<T>& rows) {
  const Read<kBlock, T> u0(rows.u0 + from, count), uf(rows.uf + from, count),
      ur(rows.ur + from, count), x(kHighway ? rows.highway + from : nullptr, count),
      c_before(rows.c_before + from, count), c(rows.c + from, count), dh(rows.dh + from, count);
  const Write<kBlock, T> du0(rows.du0 + from, count), duf(rows.duf + from, count),
      dur(rows.dur + from, count), dx(kHighway ? rows.dhighway + from : nullptr, count);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const int64_t d = from + i;
    const T highway = kHighway ? scale * x.row[i] : T(0);
    ColumnGradient<T> sum{sums.vf[d], sums.vr[d], sums.bf[d], sums.br[d]};
    const StepGradient<T> gradient =
        backward_step<kTanh>(column_of(span, d), u0.row[i], uf.row[i], ur.row[i], highway,
                             c_before.row[i], c.row[i], dh.row[i], span.state[d], sum);
    du0.row[i] = gradient.u0;
    duf.row[i] = gradient.uf;
    dur.row[i] = gradient.ur;
    if (kHighway) dx.row[i] = scale * gradient.highway;
    sums.vf[d] = sum.vf;
    sums.vr[d] = sum.vr;
    sums.bf[d] = sum.bf;
    sums.br[d] = sum.br;
  }
  du0.finish();
  duf.finish();
  dur.finish();
  if (kHighway) dx.finish();
}

template <typename T>
SRU_INLINE Rows<T> rows_of(T* tensor, const Strides& strides, const Task& task, int64_t lane) {
  return rows_of(tensor, strides, task.order, task.sequence, lane, task.column);
}

template <bool kHighway, bool kTanh, typename T>
SRU_INLINE void forward_task(const Forward<T>& call, const Task& task) {
  const Inputs<T>& in = call.in;
  const Strides out = rows_strides(in.shape);
  const Rows<const T> u0 = rows_of(in.u, in.u_strides, task, 0);
  const Rows<const T> uf = rows_of(in.u, in.u_strides, task, 1);
  const Rows<const T> ur = rows_of(in.u, in.u_strides, task, 2);
  const Rows<const T> x = rows_of(in.highway, in.highway_strides, task, 0);
  const Rows<T> h = rows_of(call.h, out, task, 0);
  const Rows<T> c = rows_of(call.c, out, task, 0);
  Span<T> span;
  load_span(span, in, task, in.c0);
  for (int64_t i = 0; i < task.order.count; ++i) {
    const ForwardRows<T> rows{u0.at(i), uf.at(i), ur.at(i),
                              x.at(i),  h.at(i),  call.c ? c.at(i) : nullptr};
    int64_t d = 0;
    for (; d + kWide <= task.count; d += kWide) {
      forward_block<kWide, kHighway, kTanh>(span, d, kWide, in.scale, rows);
    }
    for (; d < task.count; d += kNarrow) {
      const int64_t count = std::min<int64_t>(kNarrow, task.count - d);
      forward_block<kNarrow, kHighway, kTanh>(span, d, count, in.scale, rows);
    }
  }
  std::memcpy(call.c_n + task.sequence * in.shape.width + task.column, span.state,
              task.count * sizeof(T));
}

template <bool kHighway, bool kTanh, typename T>
SRU_INLINE void backward_task(const Backward<T>& call, const Task& task) {
  const Inputs<T>& in = call.in;
  const Shape& s = in.shape;
  const Strides lanes = lanes_strides(s);
  const Rows<const T> u0 = rows_of(in.u, in.u_strides, task, 0);
  const Rows<const T> uf = rows_of(in.u, in.u_strides, task, 1);
  const Rows<const T> ur = rows_of(in.u, in.u_strides, task, 2);
  const Rows<const T> x = rows_of(in.highway, in.highway_strides, task, 0);
  const Rows<const T> c = rows_of(call.c, rows_strides(s), task, 0);
  const Rows<const T> dh = rows_of(call.dh, call.dh_strides, task, 0);
  const Rows<T> du0 = rows_of(call.du, lanes, task, 0);
  const Rows<T> duf = rows_of(call.du, lanes, task, 1);
  const Rows<T> dur = rows_of(call.du, lanes, task, 2);
  const Rows<T> dx = rows_of(call.dhighway, call.dhighway_strides, task, 0);
  const int64_t at = task.sequence * s.width + task.column, plane = s.batch * s.width;
  Span<T> span;
  Sums<T> sums;
  alignas(64) T c0[kSpan];
  load_span(span, in, task, call.dc_n);
  load<T>(c0, in.c0 ? in.c0 + at : nullptr, task.count, T(0));
  for (T* sum : {sums.vf, sums.vr, sums.bf, sums.br}) load<T>(sum, nullptr, task.count, T(0));
  for (int64_t i = task.order.count - 1; i >= 0; --i) {
    const BackwardRows<T> rows{u0.at(i), uf.at(i), ur.at(i),  x.at(i),   i > 0 ? c.at(i - 1) : c0,
                               c.at(i),  dh.at(i), du0.at(i), duf.at(i), dur.at(i),
                               dx.at(i)};
    int64_t d = 0;
    for (; d + kWide <= task.count; d += kWide) {
      backward_block<kWide, kHighway, kTanh>(span, sums, d, kWide, in.scale, rows);
    }
    for (; d < task.count; d += kNarrow) {
      const int64_t count = std::min<int64_t>(kNarrow, task.count - d);
      backward_block<kNarrow, kHighway, kTanh>(span, sums, d, count, in.scale, rows);
    }
  }
  const size_t bytes = task.count * sizeof(T);
  std::memcpy(call.dc0 + at, span.state, bytes);
  std::memcpy(call.sums + at, sums.vf, bytes);
  std::memcpy(call.sums + plane + at, sums.vr, bytes);
  std::memcpy(call.sums + 2 * plane + at, sums.bf, bytes);
  std::memcpy(call.sums + 3 * plane + at, sums.br, bytes);
}

template <typename T>
SRU_INLINE void run_task(const Forward<T>& call, const Task& task) {
  if (call.in.highway) {
    call.in.tanh ? forward_task<true, true>(call, task) : forward_task<true, false>(call, task);
  } else {
    call.in.tanh ? forward_task<false, true>(call, task) : forward_task<false, false>(call, task);
  }
}

template <typename T>
SRU_INLINE void run_task(const Backward<T>& call, const Task& task) {
  if (call.in.highway) {
    call.in.tanh ? backward_task<true, true>(call, task) : backward_task<true, false>(call, task);
  } else {
    call.in.tanh ? backward_task<false, true>(call, task) : backward_task<false, false>(call, task);
  }
}

// The same source, compiled for three instruction sets; the machine it runs on chooses.
template <typename Call>
void run_portable(const Call& call, const Task& task) {
  run_task(call, task);
}

#if SRU_X86
#if defined(__clang__)
#define SRU_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#else
#define SRU_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))
#endif

template <typename Call>
__attribute__((target("avx2,fma"))) void run_avx2(const Call& call, const Task& task) {
  run_task(call, task);
}

template <typename Call>
SRU_AVX512 void run_avx512(const Call& call, const Task& task) {
  run_task(call, task);
}
#endif

enum class Path { kPortable, kAvx2, kAvx512 };

// SRU_ASR_CPU=portable or avx2 holds the choice down, for tests and comparisons.
Path choose_path() {
#if SRU_X86
  const char* wanted = std::getenv("SRU_ASR_CPU");
  const std::string limit = wanted ? wanted : "";
  __builtin_cpu_init();
  if (limit == "portable" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return Path::kPortable;
  }
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide && limit != "avx2" ? Path::kAvx512 : Path::kAvx2;
#else
  return Path::kPortable;
#endif
}

Path path() {
  static const Path chosen = choose_path();
  return chosen;
}

std::string cpu_path() {
  switch (path()) {
    case Path::kAvx512:
      return "avx512";
    case Path::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

template <typename Call>
using Runner = void (*)(const Call&, const Task&);

template <template <typename> class Call>
Runner<Call<double>> runner(const Call<double>&) {
  return run_portable<Call<double>>;
}

template <template <typename> class Call>
Runner<Call<float>> runner(const Call<float>&) {
#if SRU_X86
  if (path() == Path::kAvx512) return run_avx512<Call<float>>;
  if (path() == Path::kAvx2) return run_avx2<Call<float>>;
#endif
  return run_portable<Call<float>>;
}

// Steps past a sequence's length hold zeros. They are written, never read.
template <typename T>
void clear_padding(T* tensor, const Strides& strides, int64_t lanes, const Task& task,
                   int64_t steps) {
  for (int64_t t = task.order.count; t < steps; ++t) {
    for (int64_t l = 0; l < lanes; ++l) {
      T* row = tensor + task.sequence * strides.batch + t * strides.time + l * strides.lane;
      std::memset(row + task.column, 0, task.count * sizeof(T));
    }
  }
}

template <typename T>
void clear_padding(const Forward<T>& call, const Task& task) {
  const Shape& s = call.in.shape;
  clear_padding(call.h, rows_strides(s), 1, task, s.steps);
  if (call.c) clear_padding(call.c, rows_strides(s), 1, task, s.steps);
}

template <typename T>
void clear_padding(const Backward<T>& call, const Task& task) {
  const Shape& s = call.in.shape;
  clear_padding(call.du, lanes_strides(s), s.lanes, task, s.steps);
  if (call.dhighway && s.lanes == 3) {
    clear_padding(call.dhighway, rows_strides(s), 1, task, s.steps);
  }
}

template <template <typename> class Call, typename T>
void run_all(const Call<T>& call) {
  const Shape& s = call.in.shape;
  if (s.batch == 0 || s.width == 0) return;
  for (int64_t b = 0; call.in.lengths && b < s.batch; ++b) {
    STD_TORCH_CHECK(call.in.lengths[b] >= 0 && call.in.lengths[b] <= s.steps,
                    "sru_asr: lengths must lie in 0..", s.steps, ", got ", call.in.lengths[b],
                    " at position ", b);
  }
  // Long spans read memory in long runs; short ones are only for want of tasks.
  const int64_t hidden = s.hidden(), sides = s.batch * s.directions();
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t span = kSpan;
  while (span > kWide && sides * ((hidden + span - 1) / span) < wanted) span /= 2;
  const int64_t spans = (hidden + span - 1) / span;
  const int64_t grain = std::max<int64_t>(1, 16384 / (std::min(span, hidden) * (s.steps + 1)));
  const Runner<Call<T>> run = runner(call);
  torch::stable::parallel_for(0, sides * spans, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index % spans, side = index / spans;
      const bool backward = side % s.directions() == 1;
      Task task;
      task.sequence = side / s.directions();
      task.column = (backward ? hidden : 0) + part * span;
      task.count = std::min(span, hidden - part * span);
      task.order = order_of(backward, call.in.lengths ? call.in.lengths[task.sequence] : s.steps);
      run(call, task);
      clear_padding(call, task);
    }
  });
}

struct Cpu {
  template <typename T>
  static void forward(const Forward<T>& call, const Tensor&) {
    run_all(call);
  }

  template <typename T>
  static void backward(const Backward<T>& call, const Tensor&) {
    run_all(call);
  }

  template <typename T>
  static void sum(const Shape& s, const T* sums, T* gradient, const Tensor&) {
    for (int64_t row = 0; row < 2; ++row) {
      const T* from = sums + row * s.batch * s.width;
      T* to = gradient + row * s.width;
      std::fill(to, to + s.width, T(0));
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int64_t d = 0; d < s.width; ++d) to[d] += from[b * s.width + d];
      }
    }
  }
};

}  // namespace
}  // namespace sru

STABLE_TORCH_LIBRARY_IMPL(sru_asr, CPU, m) {
  m.impl("recurrence_forward", TORCH_BOX(&sru::recurrence_forward<sru::Cpu>));
  m.impl("recurrence_backward", TORCH_BOX(&sru::recurrence_backward<sru::Cpu>));
}

STABLE_TORCH_LIBRARY_IMPL(sru_asr, CompositeExplicitAutograd, m) {
  m.impl("cpu_path", TORCH_BOX(&sru::cpu_path));
}
