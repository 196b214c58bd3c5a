#!/usr/bin/env bash
# Check the wheel: its tag and its files, the loss in an environment with torch alone, and other versions of Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/torch_index.sh
. tools/torch_index.sh

unset PYTHONPATH # pip and Python must not find the sources
VENV=$PWD/.venv/bin/python
TORCH=$("$VENV" -c 'import torch; print(torch.__version__.partition("+")[0])')
PIP=(-m pip --no-input --disable-pip-version-check --quiet)
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT

echo "== the wheel that 'pip install .' builds, and one without kernels from a source distribution"
rm -rf build/lib* # from which setuptools adds files that have been deleted since
HPCDISTILL_KERNELS=1 "$VENV" "${PIP[@]}" wheel --no-deps --wheel-dir "$FOLDER" .
"$VENV" -c 'import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])' "$FOLDER" >"$FOLDER/log" 2>&1
HPCDISTILL_KERNELS=0 "$VENV" "${PIP[@]}" wheel --no-deps --wheel-dir "$FOLDER" "$FOLDER"/hpcdistill-*.tar.gz
"$VENV" - "$FOLDER" <<'EOF'
import sys
from pathlib import Path
from zipfile import ZipFile

(wheel,) = Path(sys.argv[1]).glob("*-py3-none-linux_*.whl")
(pure_wheel,) = Path(sys.argv[1]).glob("*-py3-none-any.whl")
kinds = ("**/*.py", "kernels/*.py", "slurm/*", "configs/*.toml", "py.typed")
sources = {str(path) for kind in kinds for path in Path("hpcdistill").glob(kind)}
for path, library in ((wheel, {"hpcdistill/kernels/libhpcdistill_cpu.so"}), (pure_wheel, set())):
    names = {name for name in ZipFile(path).namelist() if ".dist-info/" not in name}
    wrong = names - {"hpcdistill/kernels/libhpcdistill_cuda.so"} ^ sources ^ library
    assert not wrong, f"in {path.name} or in hpcdistill/, not in both: {sorted(wrong)}"
    print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1e3:.0f} kB")
EOF
WHEEL=$(echo "$FOLDER"/*-py3-none-linux_*.whl)

echo "== a new environment with torch $TORCH alone, and the wheel"
ACCELERATOR=cpu choose_torch_index
python3 -m venv "$FOLDER/venv"
"$FOLDER/venv/bin/python" "${PIP[@]}" install "${TORCH_OPTIONS[@]}" "torch==$TORCH" "$WHEEL"

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

for python in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then continue; fi
  echo "== $("$python" -V): pip accepts the wheel, and its files compile"
  "$python" "${PIP[@]}" install --no-deps --target "$FOLDER/${python//\//_}" "$WHEEL"
  "$python" -m compileall -q "$FOLDER/${python//\//_}"
done
