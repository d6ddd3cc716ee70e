// The memory instructions of the CUDA kernels, one function each. Sequences are read and written
// once, so they pass through the caches marked for early eviction.
#pragma once

#include <cstddef>

namespace sru {

template <typename P>
__device__ __forceinline__ P load_once(const P* from) {
  return {__ldcs(&from->bits)};
}

template <typename P>
__device__ __forceinline__ void store_once(P* to, P word) {
  __stcs(&to->bits, word.bits);
}

// The shared memory that a launch asks for.
__device__ __forceinline__ void* room_in_shared_memory() {
  extern __shared__ unsigned long long room[];
  return room;
}

// Copies in flight from global to shared memory. They are waited for in groups, in their order. The
// clobbers keep the compiler from reading a word before its wait: there is no barrier in between,
// since a thread reads nothing but what it fetched itself.

// Copies zeros, and reads nothing, when the word is not wanted.
template <typename P>
__device__ __forceinline__ void copy_async(P* to_shared, const P* from, bool wanted) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to_shared))),
               "l"(__cvta_generic_to_global(from)), "n"(sizeof(P)),
               "r"(wanted ? static_cast<unsigned>(sizeof(P)) : 0u)
               : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all but the newest kGroups groups have arrived.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

__device__ __forceinline__ void wait_for_all_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace sru
