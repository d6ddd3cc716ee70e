// The recurrence on the CPU: vector code over the hidden dimension, threads over everything else.
//
// A task is one sequence, one direction and a span of columns; it walks through time once, and at
// every step over its span in blocks, whose state stays in the first-level cache. What a column
// computes depends neither on how many tasks there are nor on who runs them, so results are the
// same bit for bit with any number of threads and in any batch.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "recurrence.h"
#include "recurrence_step.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define SRU_X86 1
#endif

// A lambda is compiled for the instruction set of the function around it only when inlined there.
#define SRU_LAMBDA __attribute__((always_inline))

namespace sru {
namespace {

// Columns per vector loop: wide blocks hide the latency of the chain of states behind one another,
// narrow ones keep the work that is wasted on a remainder small.
constexpr int kWide = 64;
constexpr int kNarrow = 16;
constexpr int64_t kSpan = 512;
constexpr int64_t kAhead = 2;  // steps from the one at work to the one being fetched

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

template <typename S, typename T = Compute<S>>
SRU_INLINE void load_span(Span<T>& span, const Inputs<S>& in, const Task& task, const T* state) {
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
template <int kBlock, typename S>
struct Read {
  alignas(64) S buffer[kBlock];
  const S* row;

  SRU_INLINE Read(const S* tensor, int64_t count) : row(tensor) {
    if (count >= kBlock || !tensor) return;
    std::memset(buffer, 0, sizeof(buffer));
    std::memcpy(buffer, tensor, count * sizeof(S));
    row = buffer;
  }
  SRU_INLINE Compute<S> operator[](int i) const { return widen(row[i]); }
};

template <int kBlock, typename S>
struct Write {
  alignas(64) S buffer[kBlock];
  S *tensor, *row;
  int64_t count;

  SRU_INLINE Write(S* to, int64_t columns)
      : tensor(to), row(columns < kBlock ? buffer : to), count(columns) {}
  SRU_INLINE void set(int i, Compute<S> value) const { row[i] = narrow<S>(value); }
  SRU_INLINE void finish() const {
    if (row != tensor) std::memcpy(tensor, row, count * sizeof(S));
  }
};

// The rows of one step, at the span's first column. Null: absent.
template <typename S>
struct ForwardRows {
  const S *u0, *uf, *ur, *highway;
  S* h;
};

template <typename S>
struct BackwardRows {
  const S *u0, *uf, *ur, *highway, *dh;
  const Compute<S>*c_before, *c;
  S *du0, *duf, *dur, *dhighway;
};

template <int kBlock, bool kHighway, bool kTanh, typename S>
SRU_INLINE void forward_block(Span<Compute<S>>& span, int64_t from, int64_t count, Compute<S> scale,
                              const ForwardRows<S>& rows) {
  using T = Compute<S>;
  const Read<kBlock, S> u0(rows.u0 + from, count), uf(rows.uf + from, count),
      ur(rows.ur + from, count), x(kHighway ? rows.highway + from : nullptr, count);
  const Write<kBlock, S> h(rows.h + from, count);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const T highway = kHighway ? scale * x[i] : T(0);
    h.set(i, forward_step<kTanh>(column_of(span, from + i), u0[i], uf[i], ur[i], highway,
                                 span.state[from + i]));
  }
  h.finish();
}

// The state alone: what the backward pass needs of steps whose state was not kept.
template <int kBlock, typename S>
SRU_INLINE void state_block(const Span<Compute<S>>& span, int64_t from, int64_t count,
                            const S* u0_row, const S* uf_row, const Compute<S>* before,
                            Compute<S>* after) {
  using T = Compute<S>;
  const Read<kBlock, S> u0(u0_row + from, count), uf(uf_row + from, count);
  const Read<kBlock, T> c(before + from, count);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    T state = c[i];
    forward_step<false>(column_of(span, from + i), u0[i], uf[i], T(0), T(0), state);
    after[from + i] = state;
  }
}

template <int kBlock, bool kHighway, bool kTanh, typename S>
SRU_INLINE void backward_block(Span<Compute<S>>& span, Sums<Compute<S>>& sums, int64_t from,
                               int64_t count, Compute<S> scale, const BackwardRows<S>& rows) {
  using T = Compute<S>;
  const Read<kBlock, S> u0(rows.u0 + from, count), uf(rows.uf + from, count),
      ur(rows.ur + from, count), x(kHighway ? rows.highway + from : nullptr, count),
      dh(rows.dh + from, count);
  const Read<kBlock, T> c_before(rows.c_before + from, count), c(rows.c + from, count);
  const Write<kBlock, S> du0(rows.du0 + from, count), duf(rows.duf + from, count),
      dur(rows.dur + from, count), dx(kHighway ? rows.dhighway + from : nullptr, count);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const int64_t d = from + i;
    const T highway = kHighway ? scale * x[i] : T(0);
    ColumnGradient<T> sum{sums.vf[d], sums.vr[d], sums.bf[d], sums.br[d]};
    const StepGradient<T> gradient =
        backward_step<kTanh>(column_of(span, d), u0[i], uf[i], ur[i], highway, c_before[i], c[i],
                             dh[i], span.state[d], sum);
    du0.set(i, gradient.u0);
    duf.set(i, gradient.uf);
    dur.set(i, gradient.ur);
    if (kHighway) dx.set(i, scale * gradient.highway);
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

// Calls work(block size, first column, columns) for the blocks of a span.
template <typename Work>
SRU_INLINE void for_blocks(int64_t columns, const Work& work) {
  int64_t d = 0;
  for (; d + kWide <= columns; d += kWide) {
    work(std::integral_constant<int, kWide>{}, d, static_cast<int64_t>(kWide));
  }
  for (; d < columns; d += kNarrow) {
    work(std::integral_constant<int, kNarrow>{}, d, std::min<int64_t>(kNarrow, columns - d));
  }
}

template <typename S>
SRU_INLINE Rows<S> rows_of(S* tensor, const Strides& strides, const Task& task, int64_t lane) {
  return rows_of(tensor, strides, task.order, task.sequence, lane, task.column);
}

// Of a tensor (rows, B, D) whose rows follow the order of the steps.
template <typename S>
SRU_INLINE Rows<S> rows_in_order(S* tensor, const Shape& s, const Task& task) {
  if (!tensor) return {tensor, 0};
  return {tensor + task.sequence * s.width + task.column, s.batch * s.width};
}

// The same columns of a later step lie far from those of this one: the machine does not foresee
// them.
template <typename S>
SRU_INLINE void fetch(const Rows<S>& rows, int64_t i, int64_t from, int64_t count) {
  const S* row = rows.at(i) + from;
  for (int64_t d = 0; d < count; d += 64 / sizeof(S)) __builtin_prefetch(row + d);
}

template <bool kHighway, bool kTanh, typename S>
SRU_INLINE void forward_task(const Forward<S>& call, const Task& task) {
  using T = Compute<S>;
  const Inputs<S>& in = call.in;
  const int64_t count = task.order.count;
  const size_t bytes = task.count * sizeof(T);
  const Rows<const S> u0 = rows_of(in.u, in.u_strides, task, 0);
  const Rows<const S> uf = rows_of(in.u, in.u_strides, task, 1);
  const Rows<const S> ur = rows_of(in.u, in.u_strides, task, 2);
  const Rows<const S> x = rows_of(in.highway, in.highway_strides, task, 0);
  const Rows<S> h = rows_of(call.h, call.h_strides, task, 0);
  const Rows<T> c = rows_in_order(call.c, in.shape, task);
  Span<T> span;
  load_span(span, in, task, in.c0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t later = std::min(i + kAhead, count - 1);
    const ForwardRows<S> rows{u0.at(i), uf.at(i), ur.at(i), x.at(i), h.at(i)};
    for_blocks(task.count, [&](auto block, int64_t d, int64_t columns) SRU_LAMBDA {
      fetch(u0, later, d, columns);
      fetch(uf, later, d, columns);
      fetch(ur, later, d, columns);
      if (kHighway) fetch(x, later, d, columns);
      forward_block<block(), kHighway, kTanh>(span, d, columns, in.scale, rows);
    });
    if (call.kept.holds(i, count)) std::memcpy(c.at(call.kept.row(i)), span.state, bytes);
  }
  std::memcpy(call.c_n + task.sequence * in.shape.width + task.column, span.state, bytes);
}

template <bool kHighway, bool kTanh, typename S>
SRU_INLINE void backward_task(const Backward<S>& call, const Task& task) {
  using T = Compute<S>;
  const Inputs<S>& in = call.in;
  const Shape& s = in.shape;
  const Strides lanes = lanes_strides(s);
  const Rows<const S> u0 = rows_of(in.u, in.u_strides, task, 0);
  const Rows<const S> uf = rows_of(in.u, in.u_strides, task, 1);
  const Rows<const S> ur = rows_of(in.u, in.u_strides, task, 2);
  const Rows<const S> x = rows_of(in.highway, in.highway_strides, task, 0);
  const Rows<const S> dh = rows_of(call.dh, call.dh_strides, task, 0);
  const Rows<const T> kept = rows_in_order(call.c, s, task);
  const Rows<S> du0 = rows_of(call.du, lanes, task, 0);
  const Rows<S> duf = rows_of(call.du, lanes, task, 1);
  const Rows<S> dur = rows_of(call.du, lanes, task, 2);
  const Rows<S> dx = rows_of(call.dhighway, call.dhighway_strides, task, 0);
  const int64_t at = task.sequence * s.width + task.column, plane = s.batch * s.width;
  const int64_t count = task.order.count, every = call.kept.every;
  Span<T> span;
  Sums<T> sums;
  alignas(64) T c0[kSpan];
  alignas(64) T recomputed[kMostSteps][kSpan];
  load_span(span, in, task, call.dc_n);
  load<T>(c0, in.c0 ? in.c0 + at : nullptr, task.count, T(0));
  for (T* sum : {sums.vf, sums.vr, sums.bf, sums.br}) load<T>(sum, nullptr, task.count, T(0));
  // From kept state to kept state: the states between them forward, then the gradients backward.
  for (int64_t first = (call.kept.rows(count) - 1) * every; first >= 0; first -= every) {
    const int64_t end = std::min(count, first + every);
    const T* states[kMostSteps + 1];
    states[0] = first > 0 ? kept.at(first / every - 1) : c0;
    if (every == 1) {
      states[1] = kept.at(first);
    } else {
      for (int64_t i = first; i < end; ++i) {
        const int64_t j = i - first;
        for_blocks(task.count, [&](auto block, int64_t d, int64_t columns) SRU_LAMBDA {
          state_block<block()>(span, d, columns, u0.at(i), uf.at(i), states[j], recomputed[j]);
        });
        states[j + 1] = recomputed[j];
      }
    }
    for (int64_t i = end - 1; i >= first; --i) {
      const int64_t later = std::max<int64_t>(i - kAhead, 0);
      const int64_t j = i - first;
      const BackwardRows<S> rows{u0.at(i),  uf.at(i),  ur.at(i),      x.at(i),
                                 dh.at(i),  states[j], states[j + 1], du0.at(i),
                                 duf.at(i), dur.at(i), dx.at(i)};
      for_blocks(task.count, [&](auto block, int64_t d, int64_t columns) SRU_LAMBDA {
        fetch(u0, later, d, columns);
        fetch(uf, later, d, columns);
        fetch(ur, later, d, columns);
        fetch(dh, later, d, columns);
        if (kHighway) fetch(x, later, d, columns);
        if (every == 1) fetch(kept, later, d, columns);
        backward_block<block(), kHighway, kTanh>(span, sums, d, columns, in.scale, rows);
      });
    }
  }
  const size_t bytes = task.count * sizeof(T);
  std::memcpy(call.dc0 + at, span.state, bytes);
  std::memcpy(call.sums + at, sums.vf, bytes);
  std::memcpy(call.sums + plane + at, sums.vr, bytes);
  std::memcpy(call.sums + 2 * plane + at, sums.bf, bytes);
  std::memcpy(call.sums + 3 * plane + at, sums.br, bytes);
}

template <typename S>
SRU_INLINE void run_task(const Forward<S>& call, const Task& task) {
  if (call.in.highway) {
    call.in.tanh ? forward_task<true, true>(call, task) : forward_task<true, false>(call, task);
  } else {
    call.in.tanh ? forward_task<false, true>(call, task) : forward_task<false, false>(call, task);
  }
}

template <typename S>
SRU_INLINE void run_task(const Backward<S>& call, const Task& task) {
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
  const char* wanted = std::getenv("SRU_ASR_CPU");
  const std::string limit = wanted ? wanted : "";
  STD_TORCH_CHECK(limit.empty() || limit == "portable" || limit == "avx2",
                  "SRU_ASR_CPU must be avx2, portable or unset, got '", limit, "'");
#if SRU_X86
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

// fp64, which serves gradient checks, is not compiled three times.
template <typename Call>
Runner<Call> runner() {
#if SRU_X86
  if constexpr (!std::is_same_v<typename Call::Storage, double>) {
    if (path() == Path::kAvx512) return run_avx512<Call>;
    if (path() == Path::kAvx2) return run_avx2<Call>;
  }
#endif
  return run_portable<Call>;
}

// Steps past a sequence's length hold zeros. They are written, never read.
template <typename S>
void clear_rows(S* start, int64_t stride, int64_t from, int64_t to, const Task& task) {
  for (int64_t i = from; i < to; ++i) std::memset(start + i * stride, 0, task.count * sizeof(S));
}

template <typename S>
void clear_padding(S* tensor, const Strides& strides, int64_t lanes, const Task& task,
                   int64_t steps) {
  for (int64_t l = 0; l < lanes; ++l) {
    S* start = tensor + task.sequence * strides.batch + l * strides.lane + task.column;
    clear_rows(start, strides.time, task.order.count, steps, task);
  }
}

template <typename S>
void clear_padding(const Forward<S>& call, const Task& task) {
  const Shape& s = call.in.shape;
  clear_padding(call.h, call.h_strides, 1, task, s.steps);
  const auto c = rows_in_order(call.c, s, task);
  clear_rows(c.start, c.stride, call.kept.rows(task.order.count), call.kept.rows(s.steps), task);
}

template <typename S>
void clear_padding(const Backward<S>& call, const Task& task) {
  const Shape& s = call.in.shape;
  clear_padding(call.du, lanes_strides(s), s.lanes, task, s.steps);
  if (call.dhighway && s.lanes == 3) {
    clear_padding(call.dhighway, call.dhighway_strides, 1, task, s.steps);
  }
}

template <typename Call>
void run_all(const Call& call) {
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
  const Runner<Call> run = runner<Call>();
  torch::stable::parallel_for(0, sides * spans, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index % spans, side = index / spans;
      const int64_t direction = side % s.directions();
      Task task;
      task.sequence = side / s.directions();
      task.column = direction * hidden + part * span;
      task.count = std::min(span, hidden - part * span);
      task.order = order_of(s.reversed(direction),
                            call.in.lengths ? call.in.lengths[task.sequence] : s.steps);
      run(call, task);
      clear_padding(call, task);
    }
  });
}

struct Cpu {
  template <typename S>
  static void forward(const Forward<S>& call, const Tensor&) {
    run_all(call);
  }

  template <typename S>
  static void backward(const Backward<S>& call, const Tensor&) {
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

  // The first touch of fresh memory costs a page fault for every 4 KiB, as long as the arithmetic
  // on them. Huge pages make it one for every 2 MiB.
  static void fresh(Tensor tensor) {
#if defined(__linux__)
    constexpr uintptr_t kPage = 4096, kLarge = uintptr_t{4} << 20;
    const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
    if (bytes < kLarge) return;
    const uintptr_t from = (start + kPage - 1) / kPage * kPage,
                    to = (start + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // advice: it may be refused
#endif
  }
};

}  // namespace
}  // namespace sru

STABLE_TORCH_LIBRARY_IMPL(sru_asr, CPU, m) {
  m.impl("recurrence_forward", TORCH_BOX(&sru::recurrence_forward<sru::Cpu>));
  m.impl("recurrence_backward", TORCH_BOX(&sru::recurrence_backward<sru::Cpu>));
  m.impl("recurrence_inference", TORCH_BOX(&sru::recurrence_inference<sru::Cpu>));
  m.impl("prepare", TORCH_BOX(&sru::Cpu::fresh));
}

STABLE_TORCH_LIBRARY_IMPL(sru_asr, CompositeExplicitAutograd, m) {
  m.impl("cpu_path", TORCH_BOX(&sru::cpu_path));
}
