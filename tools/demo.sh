#!/usr/bin/env bash
# Show what codistillation does for the churn of a click model and for a language model, and write a report.
# Arguments are options of the language model, such as --model.name=transformer --optimizer.lr=1e-3.
# After an interruption the next call resumes from the last checkpoints. Remove runs/demo to start over.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh

RUN=runs/demo
train_clicks() { # FOLDER OPTIONS…
  mpirun -np 2 python -m hpcdistill train configs/clicks.toml --resume --run_dir=$RUN/clicks/"$1" "${@:2}" \
    --data.path=$RUN/clicks.h5 > /dev/null # the demo's own report has the results
}
train_text() { # OPTIONS…
  mpirun -np 4 python -m hpcdistill train configs/demo.toml --resume "$@"
}

if [ ! -f $RUN/clicks.h5 ]; then
  python -m hpcdistill prepare clicks --synthetic --rows 300000 --output $RUN/clicks.h5
fi
if [ ! -f $RUN/stdlib.h5 ]; then
  stdlib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
  python -m hpcdistill prepare text --input "$stdlib" --output $RUN/stdlib.h5 \
    --include '*.py' --exclude site-packages dist-packages __pycache__
fi
echo "== clicks 1/3: one model, trained twice at the same time, without codistillation"
train_clicks plain --codistill.weight=0
echo "== clicks 2/3: one of two models that codistil, trained once"
train_clicks codistilled-0 --seed=0
echo "== clicks 3/3: the same, trained again with another seed"
train_clicks codistilled-1 --seed=1
echo "== language 1/2: codistillation, 2 groups of 2 ranks"
train_text "$@"
echo "== language 2/2: plain synchronous SGD, 4 ranks, the batch of one group, twice the steps"
train_text "$@" --run_dir=$RUN/plain --groups=1 --codistill.weight=0 --train.steps=4600
echo "== results"
PYTHONPATH=. python tools/demo_report.py $RUN
