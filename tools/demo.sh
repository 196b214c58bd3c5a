#!/usr/bin/env bash
# Train two groups that codistil, then one model by plain synchronous SGD for comparison, and write a report on both.
# Arguments are options of both, such as --model.name=transformer --optimizer.lr=1e-3.
# After an interruption the next call resumes from the last checkpoints. Remove runs/demo to start over.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh

RUN=runs/demo
if [ ! -f $RUN/stdlib.h5 ]; then
  stdlib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
  python -m hpcdistill prepare text --input "$stdlib" --output $RUN/stdlib.h5 \
    --include '*.py' --exclude site-packages dist-packages __pycache__
fi
echo "== codistillation: 2 groups of 2 ranks"
mpirun -np 4 python -m hpcdistill train configs/demo.toml --resume "$@"
echo "== plain synchronous SGD: 4 ranks, the batch of one group, twice the steps"
mpirun -np 4 python -m hpcdistill train configs/demo.toml --resume "$@" \
  --run_dir=$RUN/plain --groups=1 --codistill.weight=0 --train.steps=5600
python -m hpcdistill report $RUN/codistilled $RUN/plain --output $RUN/report.html
