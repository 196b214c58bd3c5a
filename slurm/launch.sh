# Trains in a job; sourced by train.sbatch and groups.sbatch with the arguments of `hpcdistill train`.
# A job that Slurm starts again goes on from its newest checkpoint, unless the arguments say how it resumes.
# shellcheck shell=bash

# shellcheck source=slurm/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

restarts=${SLURM_RESTART_COUNT:-0}
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, SLURM_RESTART_COUNT=$restarts"
if [ "$restarts" -gt 0 ] && [[ ! " $* " =~ \ --resume[\ =] ]]; then set -- "$@" --resume; fi

# In the background, because bash runs traps only while it waits.
"${LAUNCH[@]}" python -m hpcdistill train "$@" &
# Ranks take either signal for a request to make a checkpoint and exit with 75. But srun kills them itself after SIGTERM,
# and MPICH's mpirun dies of SIGUSR2. Hence also --signal=B:, which sends USR2 here and not to the ranks.
ask=USR2
if [[ ${LAUNCH[0]} = mpirun && $MPI = MPICH ]]; then ask=TERM; fi
time_is_up=
trap 'time_is_up=1; kill -s $ask $! || true' USR2
trap 'kill -s $ask $! || true' TERM
status=0
wait $! || status=$?
while kill -0 $! 2>/dev/null; do # a signal has ended only the waiting
  status=0
  wait $! || status=$?
done

# Not only after 75: the first rank to exit makes srun kill those that are about to.
if [ "$status" != 0 ] && [ "$time_is_up" ]; then
  job=$SLURM_JOB_ID
  # The number of an array's last job is also that of the whole array.
  if [ "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
  echo "requeueing job $job"
  scontrol requeue "$job"
fi
exit "$status"
