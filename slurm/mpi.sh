# What the MPIs, and torch under them, need from the environment. What one MPI needs the others ignore.
# shellcheck shell=bash

# Ranks, not threads, fill the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Tensors that are freed in one step are wanted again in the next. glibc would hand their memory back to the system and
# have it zeroed anew, which on a CPU is a quarter of a small model's step.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}

# Open MPI: as root (containers), and with more ranks than cores (tests, laptops); PRTE is the launcher of version 5.
# By slot: by core, as it would, it puts all ranks of a Slurm job on the first node.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=slot:oversubscribe
export PRTE_MCA_hwloc_default_binding_policy=none
# Its UCX windows gave wrong sums over TCP; without this it also prints a warning on every start.
export OMPI_MCA_osc=^ucx

# MPICH over TCP is fastest, and correct, through libfabric.
export MPIR_CVAR_CH4_NETMOD=ofi
