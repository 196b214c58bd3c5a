# Source this file for the variables of tools/setup.sh: those of the last set-up, defaults, and checks.
# shellcheck shell=bash disable=SC2034 # the other scripts use its variables

CHOICES=$VENV/setup.choices # variables of the last set-up that was completed

choose() {
  recall_choices
  choose_accelerator
  CHOSEN=$(print_choices) # without defaults, which may change
  choose_torch
  choose_mpi
  HOROVOD=${HOROVOD:-build}
  case $HOROVOD in
    build | none) ;;
    *) die "HOROVOD=$HOROVOD is unknown." "Choose HOROVOD=build, or HOROVOD=none and train with gradients = \"torch\"." ;;
  esac
}

# Give each variable that is not set its value of the last set-up, so that `make test` keeps what `make setup` was told.
recall_choices() {
  local name value
  LAST_TORCH_INDEX=''
  while IFS='=' read -r name value; do
    if [ "$name" = TORCH_INDEX ]; then LAST_TORCH_INDEX=$value; fi
    [ -v "$name" ] || declare -g "$name=$value"
  done < <(cat "$CHOICES" 2>/dev/null)
}

print_choices() {
  local name
  for name in ACCELERATOR TORCH TORCH_INDEX MPI HOROVOD; do
    if [ "${!name:-}" ]; then echo "$name=${!name}"; fi
  done
}

choose_torch() {
  TORCH=${TORCH:-2.13.0} TORCH_VERSION=$TORCH SITE_PACKAGES=''
  if [ "$TORCH" = system ]; then
    read -r TORCH_VERSION SITE_PACKAGES < <(site_torch) || die "TORCH=system, but $(type -P python3) finds no torch." \
      "Load your site's module with torch, or choose a version, such as TORCH=2.13.0."
  elif [ "$ACCELERATOR" = rocm ] && [ -z "${TORCH_INDEX:-}" ]; then
    die "ACCELERATOR=rocm, but pip's own index has no torch for ROCm." "Name the index for your version of ROCm, such as \
TORCH_INDEX=https://download.pytorch.org/whl/rocm7.1 (see pytorch.org), or use your site's torch: TORCH=system."
  fi
  [[ $TORCH_VERSION =~ ^(2\.([6-9]|[1-9][0-9]+)|[3-9])\. ]] ||
    die "TORCH=$TORCH${SITE_PACKAGES:+, which is $TORCH_VERSION,} is not supported." \
    "Choose 2.6.0 or newer, such as TORCH=2.13.0."
}

# Print the version of the torch of the python3 on PATH, and the folder that it is in.
site_torch() {
  python3 -c '
import importlib.metadata, importlib.util, pathlib
print(importlib.metadata.version("torch"), pathlib.Path(importlib.util.find_spec("torch").origin).parents[1])' 2>/dev/null
}

choose_mpi() {
  if [ -z "${MPI:-}" ]; then
    if has_system_mpi; then MPI=system; else MPI=mpich; fi
  fi
  case $MPI in
    mpich | openmpi) ;;
    system) has_system_mpi || die "MPI=system, but there is no mpicxx on PATH." \
      "Load your site's MPI module, or choose MPI=mpich, which needs nothing installed." ;;
    *) die "MPI=$MPI is unknown." "Choose one of MPI=mpich, MPI=openmpi, MPI=system." ;;
  esac
}

has_system_mpi() {
  is_cray || command -v mpicxx >/dev/null
}

# The compilers of a Cray, cc and CC, are wrappers that compile for its MPI.
is_cray() {
  [ "${CRAYPE_VERSION:-}" ] || [ "$(basename "${CXX:-}")" = CC ]
}
