# Source this file: `choose_torch_index` sets the array TORCH_INDEX to pip's options for the index of torch.
# shellcheck shell=bash

PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

# Without a GPU, prefer the CPU build, which is ten times smaller.
choose_torch_index() {
  TORCH_INDEX=()
  if command -v nvidia-smi >/dev/null; then return; fi
  if can_reach "$PYTORCH_CPU_INDEX/torch/"; then
    TORCH_INDEX=(--extra-index-url "$PYTORCH_CPU_INDEX")
  else
    echo "  $PYTORCH_CPU_INDEX cannot be reached; pip takes the build of torch that its own index has"
  fi
}

can_reach() {
  timeout 3 python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' "$1" 2>/dev/null
}
