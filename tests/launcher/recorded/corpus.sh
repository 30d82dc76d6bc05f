#!/bin/bash
#
# corpus of llama_7b in 64 tasks on the cluster case, written by lmscale.
#
# What follows is a frozen copy: a requeued attempt runs this very text with the code beside it.
# To change it, change the cluster profile and launch again.
#
# In this order:
#   1. Where things are
#   2. What every process of the job finds in its environment
#   3. One task's share of the work
#   4. Whether it comes again
#
#SBATCH --job-name=llama_7b-corpus-fbfd6c84
#SBATCH --array=0-63%100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=1:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/shared/ada/data/corpus/.slurm/job-%A_%a.out
#SBATCH --chdir=/shared/ada/data/corpus/.slurm/20261122-011900-data

# ---- 1. Where things are ----

submission=20261122-011900-data
frozen=/shared/ada/data/corpus/.slurm/20261122-011900-data

# ---- 2. What every process of the job finds in its environment ----

unset SLURM_EXPORT_ENV # which sbatch --export=NONE sets: srun would hand none of this to the ranks
export PYTHONPATH=/shared/ada/data/corpus/.slurm/20261122-011900-data/code${PYTHONPATH:+:$PYTHONPATH} # the frozen code comes first
export LMSCALE_SCRATCH=/tmp/lmscale-${USER:-$(id -un)} # caches, local to each node

set -u -o pipefail # not -e: how a step ends is a value here, not an error

# The number of an array's last task is the whole array's as well: always name the task.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() { printf '%s lmscale: %s\n' "$(date +%FT%T)" "$*"; }

restart=${SLURM_RESTART_COUNT:-0}
task=$SLURM_ARRAY_TASK_ID
say "submission $submission: task $task of 64, restart $restart, on $SLURM_JOB_NODELIST"

# ---- 3. One task's share of the work ----

# Which share it is follows from its number. What it finished counts for good, and so it needs no warning before
# it ends: preempted, cancelled, out of time or with its node lost, it goes on behind that when it comes again.
# Nor does a later job have to put the pieces together: the task that finds no other missing does.
asked=
trap 'asked=USR1' USR1 # 300 s before the time limit, at which Slurm ends a job for good
srun --nodes=1 --ntasks=1 --cpus-per-task=1 \
  /shared/ada/lmscale/.venv/bin/python -m launcher.task /shared/ada corpus build /shared/ada/data/corpus/.slurm/20261122-011900-data/config.yaml \
  --task "$task/64" --processes 1 &
srun=$!
wait $srun
code=$?
if [[ -n $asked ]]; then # it may be the signal's code and not the task's
  kill -TERM $srun 2>/dev/null # on which it kills the task; a request to the job may meet the job's next start
  wait $srun
  really=$?
  ((really == 127)) || code=$really
fi

# ---- 4. Whether it comes again ----

fate() { # what Slurm has in mind for this job: requeued (already), cancelled, or going (it is up to us)
  local row
  row=$(scontrol show -o job "$job" 2>/dev/null)
  if [[ $row =~ \ Restarts=([0-9]+) ]] && ((BASH_REMATCH[1] > restart)); then
    echo requeued
  elif [[ $row == *JobState=COMPLETING* && $row == *\ Reason=None* && $row != *\ PreemptTime=[0-9]* ]]; then
    echo cancelled # while a time limit or a lost node would be named as the reason
  else
    echo going
  fi
}

ask_slurm() { # ask_slurm COMMAND...: once more for some minutes, unless it says no: its controller may be restarting
  local said try
  for try in {1..20}; do
    if said=$("$@" 2>&1); then return 0; fi
    say "$1 $2, try $try: $said"
    if [[ $said == *disabled* || $said == *denied* || $said == *[Ii]nvalid* ]]; then return 1; fi
    sleep 15
  done
  return 1
}

again() { # again REASON: back into the queue
  say "$1"
  trap '' TERM USR1 # requeueing ends this script and its children by SIGTERM
  if ask_slurm scontrol requeue "$job"; then exit "$code"; fi
  say "this cluster refuses to requeue: set requeue: false in the profile"
}

if ((code == 0)); then exit 0; fi
if ((code == 2)); then
  say "something to mend (exit code 2), see above; launch it again when that is done"
elif [[ $(fate) != going ]]; then
  say "$(fate)"
elif [[ -n $asked ]]; then
  again "out of time: it goes on where it was"
else
  echo "$code" >>"$frozen/failures-$task"
  failures=$(wc -l <"$frozen/failures-$task")
  if ((failures < 3)); then again "failed (exit code $code): attempt $((failures + 1)) of 3"; fi
  say "failed three times (exit code $code), see above"
fi
exit "$code"
