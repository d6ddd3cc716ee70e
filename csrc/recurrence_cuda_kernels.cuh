// The recurrence's kernels on CUDA devices: a thread takes one column, or two neighbouring ones of
// 16 bits, walks through its real steps and writes zeros over the rest. Neighbouring threads hold
// neighbouring columns, so a warp reads and writes every lane of every step in one unit-stride run.
//
// A step needs the state of the step before and can only wait for it; what it reads from memory it
// can ask for long before. How far ahead decides the speed. By Little's law a device keeps
// bandwidth * latency bytes in flight: on an H200, 4.3 TB/s * 800 ns = 3.4 MB, 26 KB for each of
// its 132 multiprocessors. There are two ways to hold them.
//
// Registers hold kAhead steps. 8 steps of forward in fp32 are 128 bytes a thread, so it takes 27k
// columns to fill memory.
//
// A ring in shared memory holds kStages steps, fetched by asynchronous copies. 32 steps are 512
// bytes a thread, so memory is full from 7k columns on, or from 13k in 16 bits, where a thread has
// two. With fewer columns the chain of steps, some 70 cycles each, is the limit, and more stages
// would not help. A block of one warp takes 16 KB forward and 24 to 28 KB backward: 13 and 9 to 7
// of them fit a multiprocessor's 227 KB.
#pragma once

#include "recurrence.h"
#include "recurrence_cuda_word.cuh"
#include "recurrence_step.h"

#if defined(__CUDACC__)
#include "recurrence_cuda_memory.cuh"
#else
#include "cuda_on_host.h"  // tests compile the kernels for the host, to run them without a device
#endif

namespace sru {

constexpr int kWarp = 32;    // threads of a block with a ring: few columns spread over more blocks
constexpr int kBlock = 128;  // threads of one without
constexpr int kStages = 32;  // steps that a ring holds ahead
template <typename S>
constexpr int kAhead = sizeof(S) > 4 ? 4 : 8;  // steps that registers hold ahead
constexpr int kChunk = 4;  // steps of one group of copies; few groups, but a fine grain
constexpr int kChunks = kStages / kChunk;
static_assert(kStages == kMostSteps, "a ring holds the steps between two kept states");

// The lanes that a step reads: forward the first four, backward all. kX may be absent.
enum Lane { kU0, kUf, kUr, kX, kDh };
constexpr int kForwardLanes = 4, kBackwardLanes = 5, kStateLanes = 2;

// One sequence, one direction, W columns from `column` on.
struct Task {
  int64_t sequence, column;
  Order order;
};

// Blocks along x: `blocks` for the columns of a sequence, sequence after sequence; along y:
// directions. Lengths are not checked on the host, which would wait for the device: hold them in
// range here.
template <int W, typename S>
__device__ __forceinline__ bool find_task(const Inputs<S>& in, unsigned blocks, int threads,
                                          Task& task) {
  const unsigned sequence = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const int64_t place = (static_cast<int64_t>(block) * threads + threadIdx.x) * W;
  const int64_t side = blockIdx.y, steps = in.shape.steps;
  if (place >= in.shape.hidden()) return false;
  task.sequence = sequence;
  task.column = side * in.shape.hidden() + place;
  task.order = order_of(in.shape.reversed(side),
                        in.lengths ? clamp<int64_t>(in.lengths[sequence], 0, steps) : steps);
  return true;
}

// Steps and rows are counted in 32 bits, addresses in 64.
__device__ __forceinline__ int count_of(const Task& task) {
  return static_cast<int>(task.order.count);
}
__device__ __forceinline__ int kept_rows(unsigned every, int64_t steps) {
  return every > 0 ? (static_cast<unsigned>(steps) + every - 1) / every : 0;
}

// The rows of one sequence, one step after the other.
template <typename P>
struct Walk {
  P* at;
  int64_t stride;  // in bytes

  __device__ __forceinline__ P* next() {
    P* const row = at;
    at = reinterpret_cast<P*>(reinterpret_cast<uintptr_t>(at) + stride);
    return row;
  }
};

// From row `first` on, forward or, with `step` -1, backward. Integers, since a walk without steps
// may begin at no row at all.
template <int W, typename S>
__device__ __forceinline__ auto walk(const Rows<S>& rows, int64_t first, int step) {
  using Stored = std::remove_const_t<S>;
  using P = std::conditional_t<std::is_const_v<S>, const Word<Stored, W>, Word<Stored, W>>;
  const int64_t bytes = rows.stride * static_cast<int64_t>(sizeof(S));
  const uintptr_t start = reinterpret_cast<uintptr_t>(rows.start);
  return Walk<P>{reinterpret_cast<P*>(start + first * bytes), bytes * step};
}

template <typename S>
__device__ __forceinline__ Rows<S> rows_of(S* tensor, const Strides& strides, const Task& task,
                                           int64_t lane = 0) {
  return rows_of(tensor, strides, task.order, task.sequence, lane, task.column);
}

// Of a tensor (rows, B, D) whose rows follow the order of the steps.
template <typename S>
__device__ __forceinline__ Rows<S> rows_in_order(S* tensor, const Shape& s, const Task& task) {
  if (!tensor) return {tensor, 0};
  return {tensor + task.sequence * s.width + task.column, s.batch * s.width};
}

template <int W, typename T>
__device__ __forceinline__ void load_numbers(const T* from, T otherwise, T (&to)[W]) {
#pragma unroll
  for (int w = 0; w < W; ++w) to[w] = from ? from[w] : otherwise;
}

template <int W, typename T>
__device__ __forceinline__ void store_numbers(T* to, const T (&from)[W]) {
#pragma unroll
  for (int w = 0; w < W; ++w) to[w] = from[w];
}

template <int W, typename S, typename T = Compute<S>>
__device__ __forceinline__ void load_columns(const Inputs<S>& in, const Task& task,
                                             Column<T> (&columns)[W]) {
  const int64_t width = in.shape.width, d = task.column;
  const T unit = gate_unit<T>();
  T vf[W], vr[W], mask[W];
  load_numbers(in.v ? in.v + d : nullptr, T(0), vf);
  load_numbers(in.v ? in.v + width + d : nullptr, T(0), vr);
  load_numbers(in.mask ? in.mask + task.sequence * width + d : nullptr, T(1), mask);
#pragma unroll
  for (int w = 0; w < W; ++w) {
    columns[w] = {unit * vf[w], unit * vr[w], unit * in.b[d + w], unit * in.b[width + d + w],
                  mask[w]};
  }
}

// Zeros into the rows from `first` up to `end`. They are written, never read.
template <int W, typename S>
__device__ __forceinline__ void clear(const Rows<S>& rows, int64_t first, int64_t end) {
  auto to = walk<W>(rows, first, 1);
  for (; first < end; ++first) store_once(to.next(), Word<S, W>{0});
}

template <int W, typename S>
__device__ __forceinline__ void clear_padding(S* tensor, const Strides& strides, const Task& task,
                                              int64_t lane, int64_t steps) {
  const Order in_time = order_of(false, steps);
  clear<W>(rows_of(tensor, strides, in_time, task.sequence, lane, task.column), task.order.count,
           steps);
}

// ---- What a step reads, and the two ways to ask for it ahead of time

template <typename S, int W, int kLanes>
struct Values {
  Word<S, W> lane[kLanes];

  __device__ __forceinline__ Compute<S> number(Lane l, int w) const { return lane[l].number(w); }
};

template <typename S, int W, int kLanes>
struct Reader {
  Walk<const Word<S, W>> lanes[kLanes];
  bool highway;

  // Calls visit(lane, whether it is there, row) for the lanes of the next step.
  template <typename Visit>
  __device__ __forceinline__ void next(const Visit& visit) {
#pragma unroll
    for (int l = 0; l < kLanes; ++l) visit(l, l != kX || highway, lanes[l].next());
  }

  // Zeros, and from nowhere, when there is no such step.
  __device__ __forceinline__ Values<S, W, kLanes> load(bool wanted) {
    Values<S, W, kLanes> values;
    next([&](int l, bool there, const Word<S, W>* row) {
      values.lane[l] = wanted && there ? load_once(row) : Word<S, W>{0};
    });
    return values;
  }
};

template <int W, int kLanes, typename S>
__device__ __forceinline__ Reader<S, W, kLanes> reader(const Inputs<S>& in, const Task& task,
                                                       int64_t first, int step) {
  Reader<S, W, kLanes> reader;
#pragma unroll
  for (int l = 0; l < (kLanes < 3 ? kLanes : 3); ++l) {
    reader.lanes[l] = walk<W>(rows_of(in.u, in.u_strides, task, l), first, step);
  }
  if constexpr (kLanes > kX) {
    reader.lanes[kX] = walk<W>(rows_of(in.highway, in.highway_strides, task), first, step);
  }
  reader.highway = in.highway;
  return reader;
}

// Registers: while one chunk of steps is computed the next one is on its way.
template <typename S, int W, int kLanes, typename Step>
__device__ __forceinline__ void run_from_registers(Reader<S, W, kLanes> reader, int count,
                                                   const Step& step) {
  constexpr int kSteps = kAhead<S>;
  Values<S, W, kLanes> ahead[kSteps], now[kSteps];
#pragma unroll
  for (int j = 0; j < kSteps; ++j) ahead[j] = reader.load(j < count);
  for (int k = 0; k < count; k += kSteps) {
#pragma unroll
    for (int j = 0; j < kSteps; ++j) now[j] = ahead[j];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) ahead[j] = reader.load(k + kSteps + j < count);
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      if (k + j < count) step(now[j]);
    }
  }
}

// Shared memory: a thread has a slot of its own for every stage, so no thread waits for another.
template <typename P, int kLanes>
struct Slot {
  P lane[kLanes][kWarp];
};

template <typename S, int W, int kLanes>
struct Ring {
  using Reads = Values<S, W, kLanes>;
  Reader<S, W, kLanes> reader;
  Slot<Word<S, W>, kLanes>* slots;

  // Zeros, and from nowhere, when there is no such step.
  __device__ __forceinline__ void fetch(int slot, bool wanted) {
    reader.next([&](int l, bool there, const Word<S, W>* row) {
      copy_async(&slots[slot].lane[l][threadIdx.x], row, wanted && there);
    });
  }

  __device__ __forceinline__ Reads read(int slot) const {
    Reads values;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) values.lane[l] = slots[slot].lane[l][threadIdx.x];
    return values;
  }
};

// Step k stands in slot k % kStages. A slot is read into registers one step before its turn, and
// fetched into again at its turn.
template <typename Ring, typename Step>
__device__ __forceinline__ void run_through_ring(Ring& ring, int count, const Step& step) {
  if (count == 0) return;
#pragma unroll 1
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    for (int k = chunk * kChunk; k < (chunk + 1) * kChunk; ++k) ring.fetch(k, k < count);
    commit_copies();
  }
  wait_for_copies<kChunks - 1>();
  auto values = ring.read(0);
  int k = 0, slot = 0;
  for (; k + kChunk <= count; k += kChunk) {
    const int next_slot = (slot + kChunk) & (kStages - 1);
    wait_for_copies<kChunks - 2>();  // the chunk after this one has arrived
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const auto next = ring.read(j + 1 < kChunk ? slot + j + 1 : next_slot);
      ring.fetch(slot + j, k + j + kStages < count);
      step(values);
      values = next;
    }
    commit_copies();
    slot = next_slot;
  }
#pragma unroll 1
  for (; k < count; ++k) {
    step(values);
    values = ring.read(++slot & (kStages - 1));
  }
  wait_for_all_copies();  // none outlives its block
}

// ---- Forward

template <bool kTanh, typename S, int W>
struct ForwardColumns {
  using T = Compute<S>;
  Column<T> column[W];
  T c[W], scale;
  Walk<Word<S, W>> h;
  Walk<Word<T, W>> kept;
  int every, until_kept;

  __device__ __forceinline__ ForwardColumns(const Forward<S>& call, const Task& task)
      : scale(call.in.scale),
        h(walk<W>(rows_of(call.h, call.h_strides, task), 0, 1)),
        kept(walk<W>(rows_in_order(call.c, call.in.shape, task), 0, 1)),
        every(static_cast<int>(call.kept.every)),
        until_kept(every) {
    load_columns(call.in, task, column);
    load_numbers(call.in.c0 ? call.in.c0 + at(call, task) : nullptr, T(0), c);
  }

  static __device__ __forceinline__ int64_t at(const Forward<S>& call, const Task& task) {
    return task.sequence * call.in.shape.width + task.column;
  }

  __device__ __forceinline__ void step(const Values<S, W, kForwardLanes>& values) {
    T out[W];
#pragma unroll
    for (int w = 0; w < W; ++w) {
      out[w] = forward_step<kTanh>(column[w], values.number(kU0, w), values.number(kUf, w),
                                   values.number(kUr, w), scale * values.number(kX, w), c[w]);
    }
    store_once(h.next(), word_of<S, W>(out));
    if (--until_kept == 0) keep();  // never, where none are kept
  }

  __device__ __forceinline__ void keep() {
    store_once(kept.next(), word_of<T, W>(c));
    until_kept = every;
  }

  __device__ __forceinline__ void finish(const Forward<S>& call, const Task& task) {
    const Shape& s = call.in.shape;
    if (until_kept != every) {  // the last step's state has not been kept yet
      if (every > 0) keep();
    }
    store_numbers(call.c_n + at(call, task), c);
    clear_padding<W>(call.h, call.h_strides, task, 0, s.steps);
    clear<W>(rows_in_order(call.c, s, task), kept_rows(every, task.order.count),
             kept_rows(every, s.steps));
  }
};

template <bool kTanh, int W, typename S>
__global__ void __launch_bounds__(kBlock)
    forward_registers(const __grid_constant__ Forward<S> call, unsigned blocks) {
  Task task;
  if (!find_task<W>(call.in, blocks, kBlock, task)) return;
  ForwardColumns<kTanh, S, W> columns(call, task);
  run_from_registers(reader<W, kForwardLanes>(call.in, task, 0, 1), count_of(task),
                     [&](const auto& values) { columns.step(values); });
  columns.finish(call, task);
}

template <bool kTanh, int W, typename S>
__global__ void __launch_bounds__(kWarp)
    forward_ring(const __grid_constant__ Forward<S> call, unsigned blocks) {
  __shared__ Slot<Word<S, W>, kForwardLanes> slots[kStages];
  Task task;
  if (!find_task<W>(call.in, blocks, kWarp, task)) return;
  ForwardColumns<kTanh, S, W> columns(call, task);
  Ring<S, W, kForwardLanes> ring{reader<W, kForwardLanes>(call.in, task, 0, 1), slots};
  run_through_ring(ring, count_of(task), [&](const auto& values) { columns.step(values); });
  columns.finish(call, task);
}

// ---- Backward

template <bool kTanh, typename S, int W>
struct BackwardColumns {
  using T = Compute<S>;
  Column<T> column[W];
  T c[W], dc[W], scale;  // c: after the step that comes next
  ColumnGradient<T> sum[W];
  bool highway;
  Walk<Word<S, W>> du[3], dx;

  __device__ __forceinline__ BackwardColumns(const Backward<S>& call, const Task& task)
      : scale(call.in.scale), sum{}, highway(call.in.highway) {
    const Strides lanes = lanes_strides(call.in.shape);
    const int64_t last = task.order.count - 1;
    load_columns(call.in, task, column);
    load_numbers(call.dc_n + at(call, task), T(0), dc);
    load_numbers(
        last >= 0 ? rows(call, task).at(kept_rows(call.kept.every, last + 1) - 1) : nullptr, T(0),
        c);
#pragma unroll
    for (int l = 0; l < 3; ++l) du[l] = walk<W>(rows_of(call.du, lanes, task, l), last, -1);
    dx = walk<W>(rows_of(call.dhighway, call.dhighway_strides, task), last, -1);
  }

  static __device__ __forceinline__ int64_t at(const Backward<S>& call, const Task& task) {
    return task.sequence * call.in.shape.width + task.column;
  }

  static __device__ __forceinline__ Rows<const T> rows(const Backward<S>& call, const Task& task) {
    return rows_in_order(call.c, call.in.shape, task);
  }

  __device__ __forceinline__ void step(const Values<S, W, kBackwardLanes>& values,
                                       const Word<T, W>& before) {
    T du0[W], duf[W], dur[W], dhighway[W];
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const StepGradient<T> gradient =
          backward_step<kTanh>(column[w], values.number(kU0, w), values.number(kUf, w),
                               values.number(kUr, w), scale * values.number(kX, w),
                               before.number(w), c[w], values.number(kDh, w), dc[w], sum[w]);
      du0[w] = gradient.u0;
      duf[w] = gradient.uf;
      dur[w] = gradient.ur;
      dhighway[w] = scale * gradient.highway;
      c[w] = before.number(w);
    }
    store_once(du[kU0].next(), word_of<S, W>(du0));
    store_once(du[kUf].next(), word_of<S, W>(duf));
    store_once(du[kUr].next(), word_of<S, W>(dur));
    if (highway) store_once(dx.next(), word_of<S, W>(dhighway));
  }

  // Where the state before the first step of all stands; null: it is zero.
  static __device__ __forceinline__ const Word<T, W>* first_row(const Backward<S>& call,
                                                                const Task& task) {
    return call.in.c0 ? reinterpret_cast<const Word<T, W>*>(call.in.c0 + at(call, task)) : nullptr;
  }

  // The state before step `first`, which `every` divides.
  static __device__ __forceinline__ Word<T, W> state_before(const Backward<S>& call,
                                                            const Task& task, int first) {
    const Word<T, W>* row = first_row(call, task);
    if (first > 0) row = walk<W>(rows(call, task), kept_rows(call.kept.every, first) - 1, 1).at;
    return row ? load_once(row) : Word<T, W>{0};
  }

  // Goes on with the state alone.
  template <int kLanes>
  __device__ __forceinline__ void advance(Word<T, W>& state,
                                          const Values<S, W, kLanes>& values) const {
    T next[W];
#pragma unroll
    for (int w = 0; w < W; ++w) {
      next[w] = state.number(w);
      forward_step<false>(column[w], values.number(kU0, w), values.number(kUf, w), T(0), T(0),
                          next[w]);
    }
    state = word_of<T, W>(next);
  }

  __device__ __forceinline__ void finish(const Backward<S>& call, const Task& task) const {
    const Shape& s = call.in.shape;
    T* const sums = call.sums + at(call, task);
    const int64_t plane = s.batch * s.width;
    store_numbers(call.dc0 + at(call, task), dc);
#pragma unroll
    for (int w = 0; w < W; ++w) {
      sums[w] = sum[w].vf;
      sums[plane + w] = sum[w].vr;
      sums[2 * plane + w] = sum[w].bf;
      sums[3 * plane + w] = sum[w].br;
    }
    for (int64_t l = 0; l < s.lanes; ++l) {
      clear_padding<W>(call.du, lanes_strides(s), task, l, s.steps);
    }
    if (highway && s.lanes == 3) {
      clear_padding<W>(call.dhighway, call.dhighway_strides, task, 0, s.steps);
    }
  }
};

// From step `last` backward.
template <int W, typename S>
__device__ __forceinline__ Reader<S, W, kBackwardLanes> backward_reader(const Backward<S>& call,
                                                                        const Task& task,
                                                                        int64_t last) {
  auto reads = reader<W, kBackwardLanes>(call.in, task, last, -1);
  reads.lanes[kDh] = walk<W>(rows_of(call.dh, call.dh_strides, task), last, -1);
  return reads;
}

// Where the last of the blocks that `count` steps are cut into begins; negative when there is none.
__device__ __forceinline__ int last_multiple(int block, int count) {
  return (count + block - 1) / block * block - block;
}

// Any `every`, from registers: states are recomputed in blocks of as many steps as have room.
template <bool kTanh, int W, typename S>
__global__ void __launch_bounds__(kBlock, 2)
    backward_registers(const __grid_constant__ Backward<S> call, unsigned blocks) {
  using T = Compute<S>;
  __shared__ Word<T, W> states[kStages][kBlock];  // of a block: before each of its steps
  Task task;
  if (!find_task<W>(call.in, blocks, kBlock, task)) return;
  const int every = static_cast<int>(call.kept.every), count = count_of(task);
  const int block = kStages / every * every;
  BackwardColumns<kTanh, S, W> columns(call, task);
  for (int first = last_multiple(block, count); first >= 0; first -= block) {
    const int steps = count - first < block ? count - first : block;
    int j = 0;
    Word<T, W> state = columns.state_before(call, task, first);
    run_from_registers(reader<W, kStateLanes>(call.in, task, first, 1), steps,
                       [&](const auto& values) {
                         states[j++][threadIdx.x] = state;
                         columns.advance(state, values);
                       });
    run_from_registers(backward_reader<W>(call, task, first + steps - 1), steps,
                       [&](const auto& values) { columns.step(values, states[--j][threadIdx.x]); });
  }
  columns.finish(call, task);
}

// What the backward pass holds in shared memory: what its steps read, and the states before them.
template <typename S, int W>
using ReadSlot = Slot<Word<S, W>, kBackwardLanes>;
template <typename S, int W>
using StateSlot = Slot<Word<Compute<S>, W>, 1>;

template <typename S, int W>
struct BackwardReads : Values<S, W, kBackwardLanes> {
  Word<Compute<S>, W> before;
};

// All states are kept: they are fetched like everything else.
template <typename S, int W>
struct StateRing {
  using T = Compute<S>;
  Ring<S, W, kBackwardLanes> reads;
  StateSlot<S, W>* states;
  Walk<const Word<T, W>> kept;
  const Word<T, W>* c0;  // before the first step; null: zero
  int left;              // steps to fetch

  __device__ __forceinline__ void fetch(int slot, bool wanted) {
    reads.fetch(slot, wanted);
    Word<T, W>* const to = &states[slot].lane[0][threadIdx.x];
    const Word<T, W>* const row = --left > 0 ? kept.next() : c0;
    copy_async(to, row, left > 0 || (left == 0 && c0));
  }

  __device__ __forceinline__ BackwardReads<S, W> read(int slot) const {
    return {reads.read(slot), states[slot].lane[0][threadIdx.x]};
  }
};

template <bool kTanh, int W, typename S>
__global__ void __launch_bounds__(kWarp)
    backward_ring(const __grid_constant__ Backward<S> call, unsigned blocks) {
  __shared__ ReadSlot<S, W> reads[kStages];
  __shared__ StateSlot<S, W> states[kStages];
  Task task;
  if (!find_task<W>(call.in, blocks, kWarp, task)) return;
  using Columns = BackwardColumns<kTanh, S, W>;
  Columns columns(call, task);
  const int count = count_of(task);
  StateRing<S, W> ring{{backward_reader<W>(call, task, count - 1), reads},
                       states,
                       walk<W>(Columns::rows(call, task), count - 2, -1),
                       Columns::first_row(call, task),
                       count};
  run_through_ring(ring, count, [&](const auto& values) { columns.step(values, values.before); });
  columns.finish(call, task);
}

// What the kernel below asks for at its launch.
template <typename S, int W>
constexpr int64_t recomputing_bytes(const Kept& kept) {
  return kept.every * (sizeof(ReadSlot<S, W>) + sizeof(StateSlot<S, W>));
}

// States are kept every so many steps: step i stands in slot i % every, so between two kept states
// a block of steps stands there in its order. It is gone through twice, forward for the states and
// backward for the gradients, which gives its slots to the block before it as it goes. The fewer
// steps from one kept state to the next, the more warps a multiprocessor has room for.
template <bool kTanh, int W, typename S>
__global__ void __launch_bounds__(kWarp)
    backward_recomputing_ring(const __grid_constant__ Backward<S> call, unsigned blocks) {
  using T = Compute<S>;
  Task task;
  if (!find_task<W>(call.in, blocks, kWarp, task)) return;
  const int every = static_cast<int>(call.kept.every), count = count_of(task);
  BackwardColumns<kTanh, S, W> columns(call, task);
  Ring<S, W, kBackwardLanes> ring{backward_reader<W>(call, task, count - 1),
                                  static_cast<ReadSlot<S, W>*>(room_in_shared_memory())};
  auto* const states = reinterpret_cast<StateSlot<S, W>*>(ring.slots + every);
  const auto state = [&](int j) -> Word<T, W>& { return states[j].lane[0][threadIdx.x]; };
  for (int i = count - 1; i >= 0 && i >= count - every; --i) ring.fetch(i % every, true);
  int first = last_multiple(every, count);
  Word<T, W> start = columns.state_before(call, task, first);
  for (; first >= 0; first -= every) {
    const int last = (count - first < every ? count - first : every) - 1;
    // Asked for a block ahead, like all else.
    const Word<T, W> earlier = columns.state_before(call, task, first - every);
    wait_for_all_copies();
    auto values = ring.read(0);
    for (int j = 0; j < last; ++j) {
      const auto next = ring.read(j + 1);
      state(j) = start;
      columns.advance(start, values);
      values = next;
    }
    state(last) = start;
#pragma unroll 2
    for (int j = last; j >= 0; --j) {
      const Word<T, W> before = state(j);
      const auto next = ring.read(j > 0 ? j - 1 : 0);
      ring.fetch(j, first + j >= every);
      columns.step(values, before);
      values = next;
    }
    start = earlier;
  }
  wait_for_all_copies();
  columns.finish(call, task);
}

// ---- Gradients of v and b

// Adds up the sequences of one column in their order, without atomics: deterministic, and the same
// sum whatever the device. One warp a block, for the few columns there are; many rows in flight.
template <typename T>
__global__ void __launch_bounds__(kWarp)
    sum_sequences(const T* sums, T* gradient, int64_t batch, int64_t width) {
  constexpr int kRows = 32;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  if (d >= width) return;
  const T* row = sums + blockIdx.y * batch * width + d;
  T sum = 0;
  for (int64_t b = 0; b < batch; b += kRows) {
    T numbers[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) numbers[j] = b + j < batch ? row[j * width] : T(0);
#pragma unroll
    for (int j = 0; j < kRows; ++j) sum += numbers[j];
    row += kRows * width;
  }
  gradient[blockIdx.y * width + d] = sum;
}

}  // namespace sru
