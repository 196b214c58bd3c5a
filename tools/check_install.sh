#!/usr/bin/env bash
# Door 1 as a stranger opens it: `pip install .` into a new environment that has torch and nothing else, then the loss.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/torch_index.sh
. tools/torch_index.sh

TORCH=$(.venv/bin/python -c 'import torch; print(torch.__version__.partition("+")[0])')
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT

echo "== a new environment with torch $TORCH"
choose_torch_index
python3 -m venv "$FOLDER/venv"
PIP=("$FOLDER/venv/bin/python" -m pip --no-input --disable-pip-version-check --quiet)
"${PIP[@]}" install "${TORCH_INDEX[@]}" "torch==$TORCH"

echo "== pip install ."
HPCDISTILL_NATIVE=1 "${PIP[@]}" install .

echo "== the loss"
cd "$FOLDER" # where no source is
"$FOLDER/venv/bin/python" - <<'EOF'
import sys
from pathlib import Path

import torch

import hpcdistill
from hpcdistill import codistillation_loss
from hpcdistill.kernels.cpu_codistillation import instruction_set

logits = torch.randn(8, 1000, requires_grad=True)
target, teacher = torch.randint(0, 1000, (8,)), torch.randn(8, 1000)
for implementation in ("cpu", "torch"):
    loss = codistillation_loss(logits, target, [teacher], implementation=implementation)
    loss.backward()
    print(f"{implementation}: {loss.item():.6f}")
gradients = logits.grad.norm()
logits.grad = None
(2 * codistillation_loss(logits, target, [teacher])).backward()
torch.testing.assert_close(logits.grad.norm(), gradients)
assert "site-packages" in hpcdistill.__file__, hpcdistill.__file__
assert Path(hpcdistill.__file__).with_name("slurm").joinpath("groups.sbatch").exists(), "no scripts for Slurm"
assert not {"mpi4py", "horovod", "h5py", "numpy"} & set(sys.modules), "more than torch was imported"
print(f"installed, with {instruction_set()} instructions")
EOF
