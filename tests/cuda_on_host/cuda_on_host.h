// What the CUDA kernels need of a device, for the host: one thread of one block runs at a time.
//
// Asynchronous copies are as late, and their destinations as early overwritten, as a device could
// make them: a copy leaves a pattern of ones (a NaN) at once and brings the word only when a wait
// forces it to. So a read before its wait, or a fetch into a slot that is still to be read, shows.
#pragma once

#include <cstring>
#include <deque>
#include <functional>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
  unsigned x, y;
};
inline Index threadIdx, blockIdx;

namespace sru {

inline void* room_in_shared_memory() {
  static unsigned long long room[32 << 10];
  return room;
}

inline std::deque<std::deque<std::function<void()>>> copies(1);  // groups; the last one is open

inline void commit_copies() { copies.emplace_back(); }

// Until `groups` closed groups are left.
inline void arrive(size_t groups) {
  for (; copies.size() > groups + 1; copies.pop_front()) {
    for (const auto& copy : copies.front()) copy();
  }
}

template <int kGroups>
void wait_for_copies() {
  arrive(kGroups);
}

inline void wait_for_all_copies() {
  commit_copies();
  arrive(0);
}

template <typename P>
void copy_async(P* to_shared, const P* from, bool wanted) {
  std::memset(to_shared, 0xff, sizeof(P));
  copies.back().push_back([=] {
    if (wanted) {
      std::memcpy(to_shared, from, sizeof(P));
    } else {
      std::memset(to_shared, 0, sizeof(P));
    }
  });
}

template <typename P>
P load_once(const P* from) {
  P word;
  std::memcpy(&word, from, sizeof(P));
  return word;
}

template <typename P>
void store_once(P* to, P word) {
  std::memcpy(to, &word, sizeof(P));
}

}  // namespace sru
