# Source this file: it activates .venv and sets the variables that MPI needs.
# shellcheck shell=bash

# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/activate"
# shellcheck source=slurm/mpi.sh
. "$(dirname "${BASH_SOURCE[0]}")/../slurm/mpi.sh"
