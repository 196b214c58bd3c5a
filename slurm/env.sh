# The one file to edit for your site. slurm/*.sbatch source it in the repository's root.
# shellcheck shell=bash

# 1. Modules: the compiler, Python and MPI that `make setup` found on the login node.
# module load gcc python openmpi

# 2. The environment that `make setup` made, and what its MPI needs.
# shellcheck source=tools/env.sh
. tools/env.sh
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# 3. How ranks are started. The PMI has to be this MPI's: with another one each rank is alone in a world of its own.
case $(<.venv/mpi) in
  mpich-*) PMI=pmi2 ;;
  *) PMI=pmix ;;
esac
# Without --kill-on-bad-exit the other ranks would wait for a lost one for ever.
# shellcheck disable=SC2034 # the sbatch scripts use it
LAUNCH=(srun --mpi="$PMI" --kill-on-bad-exit=1)
# Where srun was built without that PMI: LAUNCH=(mpirun)
