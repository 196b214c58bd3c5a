#include "emulator.h"

#include <algorithm>

#include "cuda_runtime.h"

Index3 threadIdx, blockIdx, blockDim, gridDim;

emulation::Settings emulation_settings;

namespace emulation {
namespace {

constexpr size_t kStackBytes = 64 << 10, kGuardBytes = 256;
constexpr int kPoison = 0xff;                        // NaN in every format
constexpr uint64_t kInitialized = 0x6261727269657200;  // an mbarrier in phase 0; the next number: in phase 1

// Stacks are kept for the next cluster.
char* stack(size_t number) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= number) stacks.push_back(std::make_unique<char[]>(kStackBytes));
  return stacks[number].get();
}

bool is_aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

}  // namespace

Cluster* cluster;

Cluster::Cluster(int blocks, int threads, size_t bytes, std::function<void()> kernel, uint64_t seed)
    : threads_of_block_(threads), bytes_(bytes), kernel_(std::move(kernel)), random_(seed), threads_(blocks * threads) {
  eagerness_of_copies_ = chance(0.5) ? 0 : 0.3;  // with 0 they wait for all threads
  for (int rank = 0; rank < blocks; ++rank) {
    Block block;
    block.allocation = std::make_unique<char[]>(bytes + kGuardBytes + 128);
    block.memory = block.allocation.get() + 128 - reinterpret_cast<uintptr_t>(block.allocation.get()) % 128;
    memset(block.memory, kPoison, bytes + kGuardBytes);
    block.warps.resize(threads / 32);
    block.running = threads;
    block.held = chance(0.5);
    blocks_.push_back(std::move(block));
  }
  for (size_t number = 0; number < threads_.size(); ++number) {
    Thread& thread = threads_[number];
    thread.block = number / threads;
    thread.index = number % threads;
    getcontext(&thread.context);
    thread.context.uc_stack = {stack(number), 0, kStackBytes};
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, begin, 0);
  }
}

void Cluster::begin() {
  cluster->kernel_();
  cluster->thread().ended = true;
  swapcontext(&cluster->thread().context, &cluster->scheduler_);
}

std::string Cluster::run() {
  cluster = this;
  std::vector<Thread*> order;
  for (Thread& thread : threads_) order.push_back(&thread);
  while (!order.empty() || !copies_.empty()) {
    std::shuffle(order.begin(), order.end(), random_);
    bool has_advanced = false;
    for (size_t number = copies_.size(); number-- > 0;) {
      if (!chance(eagerness_of_copies_)) continue;
      finish_copy(number);
      has_advanced = true;
    }
    for (Thread* thread : order) {
      if (!can_run(*thread)) continue;
      resume(*thread);
      has_advanced = true;
      if (!error_.empty()) return error_;
      if (chance(0.002)) blocks_[thread->block].held = true;
    }
    order.erase(std::remove_if(order.begin(), order.end(), [](Thread* thread) { return thread->ended; }), order.end());
    if (!has_advanced && !release_something()) return "deadlock: every thread waits";
  }
  return error_;
}

bool Cluster::can_run(const Thread& thread) const {
  return !thread.ended && !blocks_[thread.block].held && !(thread.awaited && *thread.awaited == thread.old);
}

void Cluster::resume(Thread& thread) {
  Block& block = blocks_[thread.block];
  thread_ = &thread;
  thread.awaited = nullptr;
  block.begun = true;
  threadIdx.x = thread.index;
  blockIdx.y = thread.block;
  swapcontext(&scheduler_, &thread.context);
  if (thread.ended && --block.running == 0) check_end_of(block);
}

// Finishes a copy or goes on with a held block; returns false if there is neither.
bool Cluster::release_something() {
  std::vector<Block*> held;
  for (Block& block : blocks_)
    if (block.held && block.running) held.push_back(&block);
  if (held.empty() && copies_.empty()) return false;
  const size_t copies = eagerness_of_copies_ == 0 && !held.empty() ? 0 : copies_.size();
  const size_t choice = std::uniform_int_distribution<size_t>(0, held.size() + copies - 1)(random_);
  if (choice < held.size()) {
    held[choice]->held = false;
  } else {
    finish_copy(choice - held.size());
  }
  return true;
}

void Cluster::check_end_of(Block& block) {
  if (block.unread_stores) error_ = "a block has ended before its bulk store has read the shared memory";
  for (const Copy& copy : copies_)
    if (copy.arrived && &blocks_[copy.block] == &block) error_ = "a block has ended before its bulk copy";
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (static_cast<unsigned char>(block.memory[bytes_ + i]) != kPoison) error_ = "a write beyond the shared memory";
  memset(block.memory, kPoison, bytes_);
}

void Cluster::fail(const std::string& message) {
  error_ = message;
  swapcontext(&thread().context, &scheduler_);
  abort();  // a thread that has failed never goes on
}

bool Cluster::is_removed(Synchronization synchronization) {
  const int index = thread().passed[synchronization]++;
  return emulation_settings.removed == synchronization && emulation_settings.removed_index == index;
}

void Cluster::wait_while(const uint64_t& word, uint64_t value) {
  if (word != value) return;
  thread().awaited = &word;
  thread().old = value;
  swapcontext(&thread().context, &scheduler_);
}

void Cluster::arrive_and_wait(Barrier& barrier, int threads) {
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  wait_while(barrier.generation, generation);
}

void Cluster::wait_for_block() {
  if (is_removed(kBlockBarrier)) return;
  thread().published = thread().fenced;
  thread().fenced = false;
  arrive_and_wait(block().barrier, threads_of_block_);
}

void Cluster::arrive_at_cluster() {
  thread().cluster_generation = barrier_.generation;
  if (++barrier_.arrived == static_cast<int>(threads_.size())) {
    barrier_.arrived = 0;
    ++barrier_.generation;
  }
}

void Cluster::wait_for_cluster() {
  if (!is_removed(kClusterBarrier)) wait_while(barrier_.generation, thread().cluster_generation);
}

bool Cluster::is_shared(const void* at, size_t bytes) {
  const char* begin = static_cast<const char*>(at);
  return block().memory <= begin && begin + bytes <= block().memory + bytes_;
}

void* Cluster::shared_memory_of(int rank, void* mine) {
  if (!is_shared(mine, 1)) fail("an address outside of shared memory in map_shared_rank");
  if (rank < 0 || rank >= static_cast<int>(blocks_.size())) fail("no such block in the cluster");
  if (!blocks_[rank].begun) fail("access to the shared memory of a block that has not begun");
  if (!blocks_[rank].running) fail("access to the shared memory of a block that has ended");
  return blocks_[rank].memory + (static_cast<char*>(mine) - block().memory);
}

void Cluster::init_barrier(uint64_t* barrier) {
  *barrier = kInitialized;
  block().barriers_are_published = false;
}

void Cluster::fence() {
  if (is_removed(kFence)) return;
  block().barriers_are_published = true;
  thread().fenced = true;
}

void Cluster::start_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  if (*barrier != kInitialized) fail("a bulk copy arrives at an mbarrier that is not initialized");
  if (!block().barriers_are_published) fail("a bulk copy starts before a fence after init_barrier");
  if (bytes == 0) {
    ++*barrier;
    return;
  }
  if (bytes % 16 || !is_aligned(to) || !is_aligned(from)) fail("a misaligned bulk copy");
  if (!is_shared(to, bytes)) fail("a bulk copy to outside of shared memory");
  copies_.push_back({thread().block, to, from, bytes, barrier});
}

void Cluster::wait_for_copy(const uint64_t* barrier) {
  if (is_removed(kCopy)) return;
  if (*barrier != kInitialized && *barrier != kInitialized + 1) fail("a wait at an mbarrier that is not initialized");
  wait_while(*barrier, kInitialized);
}

void Cluster::start_store(void* to, const void* from, uint32_t bytes) {
  if (bytes == 0) return;
  if (bytes % 16 || !is_aligned(to) || !is_aligned(from)) fail("a misaligned bulk store");
  if (!is_shared(from, bytes)) fail("a bulk store from outside of shared memory");
  for (const Thread& other : threads_)
    if (other.block == thread().block && !other.published) fail("a bulk store without a fence of each thread before");
  ++block().unread_stores;
  copies_.push_back({thread().block, to, from, bytes, nullptr});
}

void Cluster::wait_for_stores() {
  if (is_removed(kStore)) return;
  while (block().unread_stores) wait_while(block().unread_stores, block().unread_stores);
}

void Cluster::finish_copy(size_t number) {
  const Copy copy = copies_[number];
  copies_.erase(copies_.begin() + number);
  memcpy(copy.to, copy.from, copy.bytes);
  if (copy.arrived) {
    ++*copy.arrived;
  } else {
    --blocks_[copy.block].unread_stores;
  }
}

}  // namespace emulation

// --- the runtime ---

namespace {

std::string last_error;

struct Attributes {
  int shared_memory = 48 << 10;
  bool may_be_large = false;  // clusters of more than 8 blocks
};

Attributes& attributes(const void* kernel) {
  static std::vector<std::pair<std::pair<int, const void*>, std::unique_ptr<Attributes>>> known;
  const std::pair<int, const void*> key(emulation_settings.device, kernel);
  for (auto& [other, value] : known)
    if (other == key) return *value;
  known.emplace_back(key, std::make_unique<Attributes>());
  return *known.back().second;
}

int blocks_of_cluster(const cudaLaunchConfig_t& config) { return config.attrs[0].val.clusterDim.y; }

}  // namespace

cudaError_t cudaSetDevice(int device) {
  emulation_settings.device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  ++emulation_settings.queries;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulation_settings.shared_memory_of_block;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulation_settings.shared_memory_of_multiprocessor;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = 1024;
      break;
  }
  return cudaSuccess;
}

cudaError_t emulation::set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  ++emulation_settings.queries;
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) attributes(kernel).shared_memory = value;
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) attributes(kernel).may_be_large = value;
  return cudaSuccess;
}

cudaError_t emulation::most_active_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t& config) {
  ++emulation_settings.queries;
  const int blocks = blocks_of_cluster(config);
  if (blocks > 8 && !attributes(kernel).may_be_large) return cudaErrorInvalidConfiguration;
  *clusters = blocks <= emulation_settings.most_blocks;
  return cudaSuccess;
}

cudaError_t emulation::launch(const void* kernel, const cudaLaunchConfig_t& config, std::function<void()> call) {
  const int blocks = blocks_of_cluster(config);
  if (config.gridDim.y != static_cast<unsigned>(blocks) || config.blockDim.x % 32) return cudaErrorInvalidConfiguration;
  if (static_cast<int>(config.dynamicSmemBytes) > attributes(kernel).shared_memory) return cudaErrorInvalidValue;
  emulation_settings.blocks = blocks;
  emulation_settings.threads = config.blockDim.x;
  blockDim.x = config.blockDim.x;
  gridDim.x = config.gridDim.x;
  gridDim.y = config.gridDim.y;
  for (unsigned row = 0; row < config.gridDim.x; ++row) {
    blockIdx.x = row;
    last_error = Cluster(blocks, blockDim.x, config.dynamicSmemBytes, call, emulation_settings.seed + row).run();
    if (!last_error.empty()) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? last_error.c_str() : "refused by the launcher or the emulated runtime";
}
