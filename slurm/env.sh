# Settings of your site, and the only file to edit. The scripts beside it source it on the compute nodes.
# shellcheck shell=bash
[ "${BASH_VERSION:-}" ] || { echo "slurm/env.sh needs bash, which sbatch --wrap does not use: write a script" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# 1. Modules: the compiler, Python and MPI that were loaded for `make setup`.
# module load gcc python openmpi

# 2. Environment: the one that `make setup` made, else the one in which this package is installed. In a copy of this
# folder elsewhere, activate it yourself: . /path/to/venv/bin/activate
if [ -f "$here/../tools/env.sh" ]; then
  # shellcheck source=tools/env.sh
  . "$here/../tools/env.sh"
else
  PATH=$(cd "$here/../../../../.." && pwd)/bin:$PATH # from lib/python3.N/site-packages/hpcdistill/slurm
  # shellcheck source=slurm/mpi.sh
  . "$here/mpi.sh"
fi
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# With sbatch --export=NONE, the default of some sites, srun would not pass these variables on to the ranks.
export SLURM_EXPORT_ENV=ALL

# 3. Launcher: srun needs the PMI plugin of this MPI (on a Cray: cray_shasta); with another one each rank is alone in
# its world. Without MPI, gradients = "torch" and exchange.transport = "files" need none.
MPI=$(python -c 'import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.get_vendor()[0])' \
  2>/dev/null) || { MPI=none && echo "slurm/env.sh: mpi4py finds no MPI, so ranks start without it" >&2; }
case $MPI in
  none) PMI=none ;;
  MPICH) PMI=pmi2 ;;
  *) PMI=pmix ;;
esac
# Without --kill-on-bad-exit the other ranks would wait forever for one that has failed.
# shellcheck disable=SC2034 # used by the scripts that source this file
LAUNCH=(srun --mpi="$PMI" --kill-on-bad-exit=1)
# Where srun was built without that PMI: LAUNCH=(mpirun)
