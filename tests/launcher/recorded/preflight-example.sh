#!/bin/bash
#
# llama_7b: a look at the nodes of the cluster example, written by lmscale.
#
# What follows is a frozen copy: a requeued attempt runs this very text with the code beside it.
# To change it, change the cluster profile and launch again.
#
# In this order:
#   1. Where things are
#   2. What every process of the job finds in its environment
#   3. Signals
#   4. Where the ranks meet
#   5. Are these nodes fit?
#
#SBATCH --job-name=llama_7b-preflight-eef446ca
#SBATCH --partition=gpu
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/shared/ada/runs/llama_7b/slurm/job-%j.out
#SBATCH --chdir=/shared/ada/runs/llama_7b/slurm/20261122-011900-train

# ---- 1. Where things are ----

submission=20261122-011900-train
run=/shared/ada/runs/llama_7b
config=/shared/ada/runs/llama_7b/slurm/20261122-011900-train/config.yaml
frozen=/shared/ada/runs/llama_7b/slurm/20261122-011900-train
state=$run/slurm

# ---- 2. What every process of the job finds in its environment ----

export NCCL_DEBUG=WARN
unset SLURM_EXPORT_ENV # which sbatch --export=NONE sets: srun would hand none of this to the ranks
export PYTHONPATH=/shared/ada/runs/llama_7b/slurm/20261122-011900-train/code${PYTHONPATH:+:$PYTHONPATH} # the frozen code comes first
export LMSCALE_SCRATCH=/tmp/lmscale-${USER:-$(id -un)} # caches, local to each node

set -u -o pipefail # not -e: how a step ends is a value here, not an error

# The number of an array's last task is the whole array's as well: always name the task.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() { printf '%s lmscale: %s\n' "$(date +%FT%T)" "$*"; }

attempt=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
mkdir -p -- "$state" || exit 1
say "submission $submission: a look at $SLURM_JOB_NODELIST"

# ---- 3. Signals ----

# USR1 comes 300 s before the time limit (--signal=B:USR1@300) and where the cluster warns of preemption;
# TERM on preemption, at the time limit and on scancel. Slurm tells this script alone, or the ranks alone, or
# both, as it is configured: so whatever comes here is passed on, to this start's own srun, which hands it to the ranks:
# a request to the job (scancel) may come so late that it meets the job's next start. The ranks save at the next
# step's end.
# The traps start no process: Slurm may signal that one too, and bash would wait for it in the trap for good.
# USR2 asks the ranks for a save: `scancel --signal=USR2` reaches them, and not this script unless it is told --full.
asked=''
signals=0
trap '' USR2
trap 'asked=${asked:-USR1} signals=$((signals + 1))' USR1
trap 'asked=${asked:-TERM} signals=$((signals + 1))' TERM
exec {table}<> <(:) # a pipe to itself: what a builtin prints is read without a process that a signal could end

listening() { # listening ARGUMENTS...: srun; what comes before it listens is lost and does not end it
  trap '' USR1
  exec srun "$@"
}

patience() { # sets `limit`, a value of SECONDS: how long the ranks may take to save
  local row='' end='' now left=86400
  for _ in 1 2 3; do # the signals of a pair may reach the process that asks, and end it
    row=$(trap '' TERM USR1 && scontrol show -o job "$job" 2>/dev/null)
    if [[ $row =~ \ EndTime=([0-9T:-]+) ]]; then end=$(trap '' TERM USR1 && date -d "${BASH_REMATCH[1]}" +%s); fi
    if [[ -n $row ]]; then break; fi
  done
  printf -v now '%(%s)T' -1
  if [[ -n $end ]]; then left=$((end - now)); fi
  # At its limit Slurm would end the job for good: where the ranks cannot save in time, it goes on without. (Of a job
  # that is preempted or cancelled the end is near or past; there Slurm itself does not wait for ever.)
  limit=$((SECONDS + (left < 60 ? 60 : left) - 20))
}

runs() { # runs PID: whether this child of the script still runs; another process may get its number when it has ended
  local pid is_there=1
  kill -0 "$1" 2>/dev/null || return # bash 5.2 may list one that ended while a trap ran
  { jobs -rp && echo end; } >&"$table"
  while read -r pid <&"$table" && [[ $pid != end ]]; do
    if [[ $pid == "$1" ]]; then is_there=0; fi
  done
  return "$is_there"
}

await() { # await PID [SECONDS]: its exit code, however many signals interrupt the waiting; it is ended after SECONDS
  local code before told='' tick='' limit=${2:+$((SECONDS + $2))}
  while runs "$1"; do
    if [[ -n $asked && -z $told ]]; then
      say "$asked: asking the ranks to save and to stop"
      told=yes
      kill -USR1 "$1"
      patience
    elif [[ -n $limit ]] && ((SECONDS >= limit + 10)); then
      kill -KILL "$1"
    elif [[ -n $limit ]] && ((SECONDS >= limit)); then
      kill -TERM "$1" # on which srun kills the ranks
    elif [[ -n $told ]]; then
      kill -USR1 "$1" # once more: a rank that is just starting does not hear it, nor a step that has not begun
    fi
    runs "$tick" || {
      sleep 5 &
      tick=$!
    }
    wait -n
  done
  { kill "$tick" && wait "$tick"; } 2>/dev/null
  while :; do # bash still knows; a signal in this very moment would give its own code
    before=$signals
    wait "$1"
    code=$?
    if ((signals == before)); then return "$code"; fi
  done
}

# ---- 4. Where the ranks meet ----

# The first node's address, asked for once here and not by every rank of a large job, and a port that follows from
# the job's number and that nobody on this node holds.
MASTER_ADDR=$(getent ahostsv4 "$SLURMD_NODENAME" | awk 'NR == 1 { print $1 }')
if [[ -z $MASTER_ADDR || $MASTER_ADDR == 127.* ]]; then MASTER_ADDR=$SLURMD_NODENAME; fi # its own loopback is no address for others

meet() {
  MASTER_PORT=$((10000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000))
  while (exec 3<>"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
  export MASTER_ADDR MASTER_PORT
}

# ---- 5. Are these nodes fit? ----

preflight=$state/preflight/$attempt

check_nodes() { # 0 fit; 1 bad nodes, named in $preflight/bad-nodes; 2 nothing can work; 75 asked to stop
  local began=$SECONDS
  mkdir -p -- "$preflight" && printf '%s\n' "$attempt" >"$preflight/token"
  meet
  listening --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=8 \
    --cpus-per-task=12 --wait=0 --kill-on-bad-exit=0 \
    /shared/ada/lmscale/.venv/bin/python -m launcher.preflight probe \
    --folder "$preflight" --run-folder "$run" \
    --cluster "$frozen/cluster.yaml" --config "$config" &
  await $! 180
  [[ -n $asked ]] && return 75
  listening --nodes=1 --ntasks=1 \
    /shared/ada/lmscale/.venv/bin/python -m launcher.preflight judge \
    --folder "$preflight" --nodes "$SLURM_JOB_NODELIST" --cluster "$frozen/cluster.yaml" \
    --job "$job" &
  await $!
  local verdict=$?
  if ((verdict == 1)) && [[ ! -s $preflight/bad-nodes ]]; then verdict=3; fi # Python itself did not start
  say "preflight took $((SECONDS - began)) s"
  [[ -n $asked ]] && return 75
  return "$verdict"
}

check_nodes
exit $?
