// Where the numbers stand: the order of the steps of one sequence, and the strides of one tensor.
//
// Every row of every tensor is found by one rule, start + i * stride, where i counts the steps the
// recurrence takes. Time-major and batch-first tensors differ in their strides, the two directions
// in where they start and in the stride's sign.
#pragma once

#include <cstdint>

#include "recurrence_math.h"

namespace sru {

struct Shape {
  int64_t steps, batch, lanes, width;
  bool bidirectional;

  SRU_INLINE int64_t directions() const { return bidirectional ? 2 : 1; }
  SRU_INLINE int64_t hidden() const { return width / directions(); }
};

// The order in which one direction visits the real steps of one sequence.
struct Order {
  int64_t first, step, count;

  SRU_INLINE int64_t at(int64_t i) const { return first + i * step; }
};

SRU_INLINE Order order_of(bool backward, int64_t length) {
  return backward ? Order{length - 1, -1, length} : Order{0, 1, length};
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
template <typename T>
struct Rows {
  T* start;
  int64_t stride;

  SRU_INLINE T* at(int64_t i) const { return start + i * stride; }
};

template <typename T>
SRU_INLINE Rows<T> rows_of(T* tensor, const Strides& strides, const Order& order, int64_t sequence,
                           int64_t lane, int64_t column) {
  // An absent tensor, or a sequence without steps, has no row to point at.
  if (!tensor || order.count == 0) return {tensor, 0};
  return {
      tensor + sequence * strides.batch + lane * strides.lane + order.first * strides.time + column,
      order.step * strides.time};
}

}  // namespace sru
