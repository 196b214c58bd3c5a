# Variables for MPICH, Open MPI and torch; each ignores those of the others.
# shellcheck shell=bash

# Ranks, not threads, fill the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Each step allocates the tensors that the last one freed. By default glibc returns their memory to the system, which
# zeroes it again: on a CPU a quarter of a small model's step.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}

# Open MPI: allow root (containers) and more ranks than cores (tests, laptops); PRTE is the launcher of version 5.
# Map by slot: mapping by core, the default, puts all ranks of a Slurm job on the first node.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=slot:oversubscribe
export PRTE_MCA_hwloc_default_binding_policy=none

# Where no network of this node can do RDMA (InfiniBand, RoCE, Omni-Path; Slingshot), MPI uses TCP between nodes. With
# RDMA the MPI knows best.
uses_tcp() {
  ! compgen -G '/sys/class/infiniband/*' && ! compgen -G '/sys/class/cxi/*'
} >/dev/null
if uses_tcp; then
  # Open MPI: windows over UCX gave wrong sums over TCP; excluding them also avoids a warning at each start.
  export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx}
  # MPICH is fastest over TCP, and correct, through libfabric.
  export MPIR_CVAR_CH4_NETMOD=${MPIR_CVAR_CH4_NETMOD:-ofi}
fi
