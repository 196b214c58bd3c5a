// Emulation of a GPU's thread-block clusters on one CPU thread. It shows errors of synchronization that a GPU shows
// rarely.
//
// The clusters of a launch run one after the other. The threads of a cluster are fibers: each runs until it waits, and
// the order in which they run is random. A block may be held, at its start or later, until no other can go on. A bulk
// copy reads and writes its data at a random time, at the latest when no thread can go on. Shared memory holds NaN
// before a block begins and after it has ended. A launch ends with an error at a deadlock, a misaligned copy, access to
// the shared memory of a block that does not run, and whatever else calls fail().
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace emulation {

enum Synchronization { kBlockBarrier, kClusterBarrier, kCopy, kStore, kFence, kSynchronizations };

// What a test chooses and reads; emulated_cuda.py has the same struct.
struct Settings {
  uint64_t seed;
  int32_t shared_memory_of_block, shared_memory_of_multiprocessor;  // bytes
  int32_t most_blocks;  // of a cluster
  // Each thread skips its call number `removed_index`, from 0, of the synchronization `removed`; -1 for none.
  int32_t removed, removed_index;
  int32_t device;           // argument of the last cudaSetDevice
  int32_t queries;          // calls of the runtime that ask or set attributes, or compute an occupancy
  int32_t blocks, threads;  // of a cluster, and of a block, of the last launch
};

// A thread waits while *awaited == old.
struct Thread {
  ucontext_t context;
  int block, index;
  const uint64_t* awaited = nullptr;
  uint64_t old = 0, cluster_generation = 0;
  unsigned shuffles = 0;
  int passed[kSynchronizations] = {};
  bool begun = false, ended = false;
  bool fenced = false, published = false;  // since the last block barrier; before it
};

struct Barrier {
  uint64_t generation = 0;
  int arrived = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t lanes[2][32];  // exchanged values; consecutive exchanges alternate
};

struct Block {
  std::unique_ptr<char[]> allocation;
  char* memory;
  Barrier barrier;
  std::vector<Warp> warps;
  uint64_t unread_stores = 0;
  int running;
  bool begun = false, held = false, barriers_are_published = true;
};

// Bulk copy between global memory and the shared memory of a block; `arrived` is null for one to global memory.
struct Copy {
  int block;
  void* to;
  const void* from;
  size_t bytes;
  uint64_t* arrived;
};

class Cluster {
 public:
  Cluster(int blocks, int threads, size_t bytes, std::function<void()> kernel, uint64_t seed);
  std::string run();  // returns what went wrong, or nothing

  // Called by threads.
  void wait_while(const uint64_t& word, uint64_t value);
  void arrive_and_wait(Barrier& barrier, int threads);
  void wait_for_block();
  void arrive_at_cluster();
  void wait_for_cluster();
  void* shared_memory_of(int rank, void* mine);
  void init_barrier(uint64_t* barrier);
  void start_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier);
  void wait_for_copy(const uint64_t* barrier);
  void start_store(void* to, const void* from, uint32_t bytes);
  void wait_for_stores();
  void fence();
  bool is_removed(Synchronization synchronization);
  [[noreturn]] void fail(const std::string& message);

  template <class T>
  T shuffled(T value, int from_lane) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    Warp& warp = block().warps[thread().index / 32];
    uint64_t* lanes = warp.lanes[thread().shuffles++ % 2];
    memcpy(&lanes[thread().index % 32], &value, sizeof value);
    arrive_and_wait(warp.barrier, 32);
    memcpy(&value, &lanes[from_lane], sizeof value);
    return value;
  }

  Thread& thread() { return *thread_; }
  Block& block() { return blocks_[thread_->block]; }

 private:
  static void begin();
  void resume(Thread& thread);
  bool can_run(const Thread& thread) const;
  void finish_copy(size_t number);
  bool release_something();
  void check_end_of(Block& block);
  bool is_shared(const void* at, size_t bytes);
  bool chance(double probability) { return std::uniform_real_distribution<>()(random_) < probability; }

  const int threads_of_block_;
  const size_t bytes_;
  const std::function<void()> kernel_;
  std::mt19937_64 random_;
  double eagerness_of_copies_;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  std::vector<Copy> copies_;
  Barrier barrier_;
  Thread* thread_ = nullptr;
  ucontext_t scheduler_;
  std::string error_;
};

extern Cluster* cluster;  // which runs now

}  // namespace emulation

extern "C" emulation::Settings emulation_settings;
