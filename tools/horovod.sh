# Source this file: `install_horovod` builds and installs Horovod for the torch, the MPI and the GPUs of .venv.
# It uses variables and functions of tools/setup.sh.
# shellcheck shell=bash

HOROVOD_VERSION=0.28.1
HOROVOD_SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0

install_horovod() {
  local torch dir
  find_gpu_libraries
  torch=$("$PYTHON" -c 'import torch; print(torch.__version__)')
  dir=$CACHE/horovod-$HOROVOD_VERSION-$("$PYTHON" -c 'import sys; print(sys.implementation.cache_tag)')-torch-$torch
  dir+=-$(<"$VENV/mpi")-$(uname -m)${CRAYPE_VERSION:+-craype-$CRAYPE_VERSION}$GPU_LIBRARIES
  dir+=${SITE_PACKAGES:+-site-$(sha256sum <<<"$SITE_PACKAGES" | cut -c 1-8)}
  dir+=-$(sha256sum tools/horovod.cmake | cut -c 1-8)
  if ! is_sound "$dir"; then
    step "Horovod $HOROVOD_VERSION: compiling, 2 to 5 minutes" build_horovod "$dir"
  fi
  # A wheel for another torch or MPI has the same version, so always install the one that fits.
  step "Horovod $HOROVOD_VERSION: installing" pip_run install --no-deps --force-reinstall "$dir"/horovod-*.whl
}

# is_sound FOLDER: succeed if it has one wheel with the checksum of its build.
is_sound() {
  (cd "$1" && sha256sum --check --status ./horovod-*.whl.sha256) 2>/dev/null
}

build_horovod() {
  mkdir -p "$CACHE"
  UNFINISHED=$(mktemp -d "$CACHE/unfinished.XXXXXX")
  echo "horovod==$HOROVOD_VERSION --hash=sha256:$HOROVOD_SHA256" >"$UNFINISHED/requirements.txt"
  local variables=("${GPU_VARIABLES[@]}")
  if [ "$MPI" != system ]; then variables+=(MPI_HOME="$VENV"); fi
  if is_cray; then variables+=(CC=cc CXX=CC); fi # its wrappers compile for MPI, as mpicxx does elsewhere
  if [ "$NCCL_LIBRARY" ]; then # pip's NCCL has no file of the name that the linker looks for
    ln -s "$NCCL_LIBRARY" "$UNFINISHED/libnccl.so"
    variables+=(HOROVOD_NCCL_LIB="$UNFINISHED")
  fi
  variables+=(CMAKE_TOOLCHAIN_FILE="$PWD/tools/horovod.cmake" MAKEFLAGS="-j$(parallel_jobs)")
  (
    export HOROVOD_CMAKE=$VENV/bin/cmake \
      HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
      HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_CPU_OPERATIONS=MPI "${variables[@]}"
    pip_run wheel --verbose --no-build-isolation --no-deps --no-cache-dir --no-binary horovod \
      --wheel-dir "$UNFINISHED" --requirement "$UNFINISHED/requirements.txt"
  )
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

# --- libraries of GPUs ---

# Set GPU_VARIABLES to what Horovod's build reads; GPU_LIBRARIES, a part of the wheel's path, to their versions.
find_gpu_libraries() {
  GPU_VARIABLES=() GPU_LIBRARIES='' NCCL_LIBRARY=''
  case $ACCELERATOR in
    cuda)
      find_cuda
      find_nccl
      GPU_VARIABLES=(CUDA_HOME="$CUDA" HOROVOD_CUDA_HOME="$CUDA" HOROVOD_GPU_OPERATIONS=NCCL
        HOROVOD_NCCL_LINK=SHARED HOROVOD_NCCL_INCLUDE="$NCCL/include")
      GPU_LIBRARIES=-cuda-$CUDA_VERSION-nccl-$(nccl_version)
      GPU_LIBRARIES+=${HOROVOD_BUILD_CUDA_CC_LIST:+-cc-${HOROVOD_BUILD_CUDA_CC_LIST//,/-}}
      ;;
    rocm)
      find_rocm
      GPU_VARIABLES=(ROCM_HOME="$ROCM" HOROVOD_ROCM_HOME="$ROCM" HOROVOD_GPU=ROCM HOROVOD_GPU_OPERATIONS=NCCL)
      GPU_LIBRARIES=-rocm-$(cut -d - -f 1 "$ROCM/.info/version")
      ;;
  esac
}

# Before anything is installed: the compiler for GPUs is what sites lack most often.
check_gpu_compiler() {
  case $ACCELERATOR in
    cuda) find_cuda ;;
    rocm) find_rocm ;;
  esac
}

# Set CUDA to the folder of the toolkit that nvcc itself names, since an nvcc on PATH may be a script that calls it.
find_cuda() {
  local nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
  CUDA=$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p') || true
  [ "$CUDA" ] || die "ACCELERATOR=cuda, but there is no $nvcc, which Horovod needs for GPUs." \
    "Load your site's CUDA module, or do without Horovod: HOROVOD=none, and train with gradients = \"torch\"."
  CUDA=$(realpath "$CUDA")
  CUDA_VERSION=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
}

# torch refuses extensions that another major version of CUDA compiles.
require_cuda_of_torch() {
  local torch
  torch=$("$PYTHON" -c 'import torch; print(torch.version.cuda)')
  [ "${torch%%.*}" = "${CUDA_VERSION%%.*}" ] || die "torch is built for CUDA $torch, but nvcc is of CUDA $CUDA_VERSION." \
    "Load a CUDA module of that version, or choose another build: TORCH_INDEX=https://download.pytorch.org/whl/cu…"
}

# Set NCCL to the folder of the NCCL that torch loads: pip's, else your site's.
find_nccl() {
  local folder file
  require_cuda_of_torch
  NCCL=$("$PYTHON" -c 'import nvidia.nccl; print(*nvidia.nccl.__path__)' 2>/dev/null) || NCCL=${NCCL_HOME:-}
  for folder in lib lib64 "lib/$(uname -m)-linux-gnu"; do
    for file in libnccl.so.2 libnccl.so; do
      if [ "$NCCL" ] && [ -e "$NCCL/$folder/$file" ]; then
        NCCL_LIBRARY=$NCCL/$folder/$file
        return
      fi
    done
  done
  die "This torch has brought no NCCL of pip, and NCCL_HOME=${NCCL_HOME:-} has no libnccl.so." \
    "Load your site's NCCL module and set NCCL_HOME to the folder with its include/ and lib/."
}

nccl_version() {
  awk '/^#define NCCL_(MAJOR|MINOR|PATCH) / { printf "%s%s", dot, $3; dot = "." }' "$NCCL/include/nccl.h"
}

find_rocm() {
  ROCM=${ROCM_PATH:-/opt/rocm}
  [ -x "$ROCM/bin/hipcc" ] || die "ACCELERATOR=rocm, but there is no $ROCM/bin/hipcc, which Horovod needs for GPUs." \
    "Load your site's ROCm module, or do without Horovod: HOROVOD=none, and train with gradients = \"torch\"."
}
