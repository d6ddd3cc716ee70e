// Where the numbers stand: the order of the steps of one sequence, and the strides of one tensor.
//
// Every row of every tensor is found by one rule, start + i * stride, where i counts the steps the
// recurrence takes. Time-major and batch-first tensors differ in their strides, the two directions
// in where they start and in the stride's sign.
#pragma once

#include <cstdint>

#include "recurrence_math.h"

namespace sru {

enum class Direction { kForward, kBackward, kBoth };

struct Shape {
  int64_t steps, batch, lanes, width;
  Direction direction;

  SRU_INLINE int64_t directions() const { return direction == Direction::kBoth ? 2 : 1; }
  SRU_INLINE int64_t hidden() const { return direction == Direction::kBoth ? width / 2 : width; }
  // Whether a side, 0 or, of both directions, 1, goes from the end to the beginning.
  SRU_INLINE bool reversed(int64_t side) const {
    return direction == Direction::kBackward || side == 1;
  }
};

// The order in which one direction visits the real steps of one sequence.
struct Order {
  int64_t first, step, count;

  SRU_INLINE int64_t at(int64_t i) const { return first + i * step; }
};

SRU_INLINE Order order_of(bool reversed, int64_t length) {
  return reversed ? Order{length - 1, -1, length} : Order{0, 1, length};
}

// Element strides of a (T, B, D) or (T, B, k, D) tensor whose rows along D are contiguous.
struct Strides {
  int64_t time, batch, lane;
};

// Those of a contiguous tensor.
SRU_INLINE Strides rows_strides(const Shape& s) { return {s.batch * s.width, s.width, 0}; }
SRU_INLINE Strides lanes_strides(const Shape& s) {
  return {s.batch * s.lanes * s.width, s.lanes * s.width, s.width};
}

// The rows of one sequence, in the order of its steps.
template <typename S>
struct Rows {
  S* start;
  int64_t stride;

  SRU_INLINE S* at(int64_t i) const { return start + i * stride; }
};

template <typename S>
SRU_INLINE Rows<S> rows_of(S* tensor, const Strides& strides, const Order& order, int64_t sequence,
                           int64_t lane, int64_t column) {
  // An absent tensor, or a sequence without steps, has no row to point at.
  if (!tensor || order.count == 0) return {tensor, 0};
  return {
      tensor + sequence * strides.batch + lane * strides.lane + order.first * strides.time + column,
      order.step * strides.time};
}

// The kept states: row j holds the state after `every` steps more than row j - 1, in the order of
// the steps, whichever way they go through time; the last row that of the last step.
struct Kept {
  int64_t every;  // 0: none are kept

  SRU_INLINE int64_t rows(int64_t count) const {
    return every > 0 ? (count + every - 1) / every : 0;
  }
  SRU_INLINE bool holds(int64_t i, int64_t count) const {
    return every > 0 && ((i + 1) % every == 0 || i + 1 == count);
  }
  SRU_INLINE int64_t row(int64_t i) const { return i / every; }
};

}  // namespace sru
