# Train in a job; sourced by train.sbatch and groups.sbatch with the arguments of `hpcdistill train`.
# A job that Slurm has requeued resumes from its newest checkpoint, unless the arguments contain --resume.
# shellcheck shell=bash

# shellcheck source=slurm/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

restarts=${SLURM_RESTART_COUNT:-0}
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, SLURM_RESTART_COUNT=$restarts"
if [ "$restarts" -gt 0 ] && [[ ! " $* " =~ \ --resume[\ =] ]]; then set -- "$@" --resume; fi

# In the background: bash runs no trap while it waits for a command in the foreground.
"${LAUNCH[@]}" python -m hpcdistill train "$@" &
# At SIGUSR2 or SIGTERM, ranks write a checkpoint and exit with 75. But srun kills them itself after SIGTERM, and mpirun
# of MPICH dies of SIGUSR2. Hence #SBATCH --signal=B:, which sends USR2 to this script only.
stop_signal=USR2
if [[ ${LAUNCH[0]} = mpirun && $MPI = MPICH ]]; then stop_signal=TERM; fi
time_is_up=
trap 'time_is_up=1; kill -s $stop_signal $! || true' USR2
trap 'kill -s $stop_signal $! || true' TERM
status=0
wait $! || status=$?
while kill -0 $! 2>/dev/null; do # a signal interrupted the wait
  status=0
  wait $! || status=$?
done

# Not only after 75: when the first rank exits, srun kills the others, which would have exited with 75 too.
if [ "$status" != 0 ] && [ "$time_is_up" ]; then
  job=$SLURM_JOB_ID
  # The number of the last job of an array also stands for the whole array.
  if [ "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
  echo "requeueing job $job"
  scontrol requeue "$job"
fi
exit "$status"
