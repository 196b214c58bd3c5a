# Source this file: `choose_torch_index` sets the array TORCH_OPTIONS to pip's options for the index of torch.
# It reads TORCH_INDEX, the URL of an index, and ACCELERATOR: cuda, rocm or cpu.
# shellcheck shell=bash disable=SC2034 # the script that sources it uses its variables

PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

choose_torch_index() {
  TORCH_OPTIONS=()
  if [ "${TORCH_INDEX:-}" ]; then
    TORCH_OPTIONS=(--index-url "$TORCH_INDEX")
  elif [ "$ACCELERATOR" = cpu ]; then # the CPU build is ten times smaller
    if can_reach "$PYTORCH_CPU_INDEX/torch/"; then
      TORCH_OPTIONS=(--extra-index-url "$PYTORCH_CPU_INDEX")
    else
      echo "  $PYTORCH_CPU_INDEX cannot be reached; pip takes the build of torch that its own index has"
    fi
  fi
}

can_reach() {
  timeout 3 python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' "$1" 2>/dev/null
}
