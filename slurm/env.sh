# The one file to edit for your site. The scripts beside it source it on the compute nodes.
# shellcheck shell=bash
[ "${BASH_VERSION:-}" ] || { echo "slurm/env.sh needs bash, which sbatch --wrap does not use: write a script" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# 1. Modules: the compiler, Python and MPI that `make setup` found on the login node.
# module load gcc python openmpi

# 2. The environment that `make setup` made, or else the one that this package is installed in, and what its MPI needs.
# A copy of this folder elsewhere has to activate its own: . /path/to/venv/bin/activate
if [ -f "$here/../tools/env.sh" ]; then
  # shellcheck source=tools/env.sh
  . "$here/../tools/env.sh"
else
  PATH=$(cd "$here/../../../../.." && pwd)/bin:$PATH # from lib/python3.N/site-packages/hpcdistill/slurm
  # shellcheck source=slurm/mpi.sh
  . "$here/mpi.sh"
fi
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# sbatch --export=NONE, which some sites set for all, would have srun keep all this from the ranks.
export SLURM_EXPORT_ENV=ALL

# 3. How ranks are started. The PMI has to be this MPI's: with another one each rank is alone in a world of its own.
MPI=$(python -c 'import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.get_vendor()[0])')
case $MPI in
  MPICH) PMI=pmi2 ;;
  *) PMI=pmix ;;
esac
# Without --kill-on-bad-exit the other ranks would wait for a lost one for ever.
# shellcheck disable=SC2034 # the scripts that source this use it
LAUNCH=(srun --mpi="$PMI" --kill-on-bad-exit=1)
# Where srun was built without that PMI: LAUNCH=(mpirun)
