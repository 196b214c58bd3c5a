# Source this file: `install_torch` installs torch for ACCELERATOR, or makes .venv use the site's.
# It uses variables and functions of tools/setup.sh.
# shellcheck shell=bash

# Without hashes: the version is the user's choice, and the build depends on the index.
install_torch() {
  local link
  link=$(echo "$VENV"/lib/python3.*/site-packages)/site-torch.pth
  rm -f "$link"
  if [ "$TORCH" = system ]; then
    pip_run uninstall --yes torch
    echo "$SITE_PACKAGES" >"$link" # Python appends this folder to its path: what .venv has comes first
    fits_accelerator || die "ACCELERATOR=$ACCELERATOR, but the torch in $SITE_PACKAGES is a build for something else." \
      "Load another module with torch, or choose a version, such as TORCH=2.13.0."
    return
  fi
  # The version does not tell builds apart: pip would keep the one that is there.
  if ! fits_accelerator || [ "${TORCH_INDEX:-}" != "$LAST_TORCH_INDEX" ]; then pip_run uninstall --yes torch; fi
  pip_run install "${TORCH_OPTIONS[@]}" "torch==$TORCH"
  fits_accelerator || die "ACCELERATOR=$ACCELERATOR, but pip has found a build of torch $TORCH for something else." \
    "Name an index that has the right one, such as TORCH_INDEX=https://download.pytorch.org/whl/cu130."
}

# Succeed if the torch of .venv is built for ACCELERATOR; on CPUs every build works.
fits_accelerator() {
  [ "$ACCELERATOR" = cpu ] || "$PYTHON" -c '
import sys, torch
sys.exit(not {"cuda": torch.version.cuda, "rocm": torch.version.hip}[sys.argv[1]])' "$ACCELERATOR" 2>/dev/null
}
