// Clusters of cooperative groups, on the emulated GPU.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  void barrier_arrive() const { emulation::cluster->arrive_at_cluster(); }
  void barrier_wait() const { emulation::cluster->wait_for_cluster(); }
  void sync() const {
    barrier_arrive();
    barrier_wait();
  }
  template <class T>
  T* map_shared_rank(T* mine, int rank) const {
    return static_cast<T*>(emulation::cluster->shared_memory_of(rank, mine));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
