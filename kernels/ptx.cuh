// PTX instructions that CUDA C++ does not offer: hardware exponential and logarithm, bulk copies between global and
// shared memory. tests/support/cuda_emulation has the same functions for CPUs.
#pragma once

#include <cstdint>

namespace {

__device__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ float log2_of(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Returns the start of the block's dynamic shared memory.
__device__ uint4* dynamic_shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ void init_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

// Bulk copies use another memory proxy. Called by every thread that has written shared memory, before a copy that
// arrives at the barriers or reads the data.
__device__ void publish_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies global to shared memory. Called by one thread. `bytes` and the addresses are multiples of 16; with 0 bytes the
// addresses do not matter.
__device__ void start_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  const uint32_t arrived = shared_address(barrier);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrived), "r"(bytes) : "memory");
  if (bytes == 0) return;
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(arrived)
               : "memory");
}

__device__ void wait_for_copy(uint64_t* barrier) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], 0;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier))
        : "memory");
  }
}

// Copies shared to global memory. Called by one thread, under the same conditions.
__device__ void start_store(void* to, const void* from, uint32_t bytes) {
  if (bytes == 0) return;
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until the stores of this thread have read the shared memory, which is theirs until then.
__device__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

}  // namespace
