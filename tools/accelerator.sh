# Source this file: `choose_accelerator` sets ACCELERATOR to cuda, rocm or cpu, if it is not set.
# shellcheck shell=bash

choose_accelerator() {
  case ${ACCELERATOR:-} in
    cuda | rocm | cpu) return ;;
    ?*) die "ACCELERATOR=$ACCELERATOR is unknown." "Choose one of ACCELERATOR=cuda, ACCELERATOR=rocm, ACCELERATOR=cpu." ;;
  esac
  if nvidia-smi -L 2>/dev/null | grep -q ^GPU; then
    ACCELERATOR=cuda
  elif rocminfo 2>/dev/null | grep -q 'Device Type: *GPU'; then
    ACCELERATOR=rocm
  elif cluster_has_gpus; then
    die "No GPU is seen here, but nodes of this Slurm cluster have GPUs (sinfo: $(gpus_of_cluster))." \
      "Say what jobs will run on: ACCELERATOR=cuda make setup (NVIDIA), ACCELERATOR=rocm (AMD), or ACCELERATOR=cpu."
  else
    ACCELERATOR=cpu
  fi
}

cluster_has_gpus() {
  command -v sbatch >/dev/null && [ "$(gpus_of_cluster)" ]
}

# Print the GPUs that Slurm knows of, such as "gpu:a100:4, gpu:h100:4".
gpus_of_cluster() {
  timeout 10 sinfo --noheader --format=%G 2>/dev/null | grep -o 'gpu[^,(]*' | sort -u | paste -sd, | sed 's/,/, /g'
}
