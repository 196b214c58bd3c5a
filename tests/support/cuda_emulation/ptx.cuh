// The functions of the kernel's ptx.cuh, on the emulated GPU.
#pragma once

#include "cuda_runtime.h"

namespace {

// The instructions flush subnormal numbers to zero.
inline float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
inline float exp2_of(float x) { return flushed(exp2f(flushed(x))); }
inline float log2_of(float x) { return log2f(flushed(x)); }

inline uint4* dynamic_shared_memory() { return reinterpret_cast<uint4*>(emulation::cluster->block().memory); }
inline void init_barrier(uint64_t* barrier) { emulation::cluster->init_barrier(barrier); }
inline void publish_to_copies() { emulation::cluster->fence(); }
inline void start_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  emulation::cluster->start_copy(to, from, bytes, barrier);
}
inline void wait_for_copy(const uint64_t* barrier) { emulation::cluster->wait_for_copy(barrier); }
inline void start_store(void* to, const void* from, uint32_t bytes) {
  emulation::cluster->start_store(to, from, bytes);
}
inline void wait_for_stores() { emulation::cluster->wait_for_stores(); }

}  // namespace
