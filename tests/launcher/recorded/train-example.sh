#!/bin/bash
#
# llama_7b: training on the cluster example, written by lmscale.
# 8 nodes with 8 ranks and 8 GPUs each.
#
# What follows is a frozen copy: a requeued attempt runs this very text with the code beside it.
# To change it, change the cluster profile and launch again.
#
# In this order:
#   1. Where things are
#   2. What every process of the job finds in its environment
#   3. Which attempt this is
#   4. Signals
#   5. How it ends
#   6. Where the ranks meet
#   7. Are these nodes fit?
#   8. The ranks
#
#SBATCH --job-name=llama_7b-eef446ca
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
usable=(8) # numbers of nodes whose ranks share a step's windows evenly

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

# ---- 3. Which attempt this is ----

restart=${SLURM_RESTART_COUNT:-0}
attempt=$SLURM_JOB_ID.$restart
exits=$state/exits/$attempt
mkdir -p -- "$exits" "$run/logs" || exit 1
export LMSCALE_SUBMISSION=$submission LMSCALE_ATTEMPT=$attempt LMSCALE_EXITS=$exits
export LMSCALE_GPUS_PER_NODE=8 # a node whose GPUs do not come up must not train on its CPU

committed() { # the highest step that was committed and not removed since; -1 where there is none
  local step
  step=$(awk -F '"step": ' '
    /^."event": "commit"/ { there[$2 + 0] = 1 }
    /^."event": "remove"/ { delete there[$2 + 0] }
    END { last = -1; for (step in there) if (step + 0 > last) last = step + 0; print last }
  ' "$run/commits.jsonl" 2>/dev/null)
  printf '%s' "${step:--1}"
}

note() { # note EVENT FIELDS: a row of events.jsonl, which `lmscale runs status` reads
  printf '{"event":"%s","time":%s,"submission":"%s","job":"%s","restart":%s,%s}\n' \
    "$1" "$(date +%s.%3N)" "$submission" "$job" "$restart" "$2" >>"$state/events.jsonl"
}

events() { # events KIND: this submission's rows of one kind
  grep -F "{\"event\":\"$1\"," "$state/events.jsonl" 2>/dev/null | grep -F "\"submission\":\"$submission\""
}

if [[ -e $frozen/ended ]]; then # a chain's later jobs, when an earlier one has said the last word
  say "$(<"$frozen/ended")"
  exit 0
fi

before=$(committed)
printf '%s\n' "$attempt" >"$state/owner.$attempt" && mv -- "$state/owner.$attempt" "$state/owner"
note start "\"step\":$before,\"nodes\":\"$SLURM_JOB_NODELIST\""
if grep -qxF -e "$job" -e "$SLURM_JOB_ID" "$state/cancel" 2>/dev/null; then # asked for while it was being requeued
  note end "\"step\":$before,\"code\":75,\"reason\":\"cancelled\",\"action\":\"cancelled\""
  say "cancelled"
  exit 75
fi
say "job $job, restart $restart, on $SLURM_JOB_NODELIST; newest checkpoint: ${before/#-1/none}"

# ---- 4. Signals ----

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

# ---- 5. How it ends ----

weigh() { # weigh CODE: srun gives the largest code of its tasks; what the ranks said themselves counts more
  local code=$1 file told calm=1
  for file in "$exits"/rank-*; do
    [[ -r $file ]] || continue
    told=$(<"$file")
    case $told in
      76) code=76 ;;
      2) [[ $code == 76 ]] || code=2 ;;
      0 | 75) ;;
      *) calm= ;;
    esac
  done
  # A fault that the ranks named: those that srun killed when the first one ended say nothing of their own.
  if [[ $code != 2 && $code != 76 && -n $(fault_file) ]]; then code=75; fi
  # srun also gives 0 when Slurm has given a node up, though what runs there runs on.
  if [[ $code == 0 && ! -s $exits/rank-00000 ]]; then code=1; fi
  # Asked to stop, and nothing went wrong: ranks that did not listen yet died of the signal.
  if [[ $code != 0 && $code != 2 && $code != 76 && -n $asked && -n $calm ]]; then code=75; fi
  printf '%s' "$code"
}

fault_file() { # what a rank wrote of a fault that ends a run though nobody asked it to: a full disk, ranks that differ
  local file
  for file in "$exits"/fault-*; do
    if [[ -s $file ]]; then printf '%s' "$file" && return; fi
  done
}

how_it_finished() { # ranks that ended well have done all steps, or say in attempts.jsonl why they stopped before
  local words
  words=$(sed -n '$s/.*"reason": "\(stopped early[^"]*\)".*/\1/p' "$run/attempts.jsonl" 2>/dev/null)
  words=${words//[^[:alnum:] ._:,%()\/=<>+-]/ }
  printf '%s' "${words:-finished}"
}

fault_words() { # in words, fit for a row; empty where there was none
  local file words=
  file=$(fault_file)
  [[ -z $file ]] || IFS= read -r words <"$file"
  printf '%s' "${words//[^[:alnum:] ._:,%()\/=<>+-]/ }"
}

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

name_bad_nodes() { # name_bad_nodes FILE: leave them out for good in this submission; sets `names`, and `nodes` to all
  local node reason
  names=
  while IFS=$'\t' read -r node reason; do
    reason=${reason//[^[:alnum:] ._:,%()\/=<>+-]/ }
    names=${names:+$names, }$node
    say "bad node $node: $reason"
    note exclude "\"nodes\":\"$node\",\"reason\":\"$reason\""
  done <"$1"
  cut -f 1 -- "$1" >>"$frozen/excluded"
  nodes=$(sort -u -- "$frozen/excluded" | paste -s -d ,)
}

start_elsewhere() { # start_elsewhere: without `nodes`; fails where Slurm refuses
  trap '' TERM USR1 # holding ends this script and its children by SIGTERM; the rest has to follow
  # Released only when they are excluded: it would start on the same nodes, over and over.
  ask_slurm scontrol requeuehold "$job" && ask_slurm scontrol update JobId="$job" ExcNodeList="$nodes" &&
    ask_slurm scontrol release "$job"
}

exclude_nodes() { # leave out what the preflight named, and start elsewhere
  local nodes names
  name_bad_nodes "$preflight/bad-nodes"
  note end "\"step\":$before,\"code\":75,\"reason\":\"bad nodes excluded: $names\",\"action\":\"requeue\""
  if ! start_elsewhere; then
    note end "\"step\":$before,\"code\":75,\"reason\":\"Slurm would not requeue\",\"action\":\"stop\""
  fi
  exit 75
}

saved() { # saved STEP, in words
  if (($1 < 0)); then echo "nothing saved yet"; else echo "saved at step $1"; fi
}

# How many earlier attempts of this submission ended by themselves with the run at a step: the brake counts only what
# came to an end without progress, not attempts that were preempted, lost with their node, or left a bad one.
failed_at() { events end | grep -E "\"step\":$1," | grep -cvE '"code":75,|"action":"(requeued|fenced)"'; }
stopped_at() { events end | grep -E "\"step\":$1,\"code\":75,.*\"action\":\"(requeue|chain)\"" | grep -cvF '"reason":"bad nodes'; }
# Faults that the ranks named count like failures, but for the one without a step: another node may do better.
faults() { events end | grep -E '"action":"(requeue|chain)"' | grep -cF '"fault":"'; }

decide() { # decide CODE STEP FAULT: one of fenced, done, stop, cancelled, requeued, requeue; a colon; the reason
  local code=$1 step=$2 fault=$3 failures fate owner
  fate=$(fate)
  failures=$(($(failed_at '-?[0-9]+') + $(faults)))
  owner=$(cat -- "$state/owner" 2>/dev/null) # empty where the file system fails, which is no other attempt
  if [[ -n $owner && $owner != "$attempt" ]]; then
    echo "fenced: attempt $owner has taken this run over"
  elif ((code == 0)); then
    echo "done: $(how_it_finished)"
  elif ((code == 2)); then
    echo "stop: something to mend (exit code 2), see the log"
  elif ((code == 76)); then
    echo "stop: stopped by the guard (exit code 76), see the log"
  elif [[ $fate == cancelled ]] || grep -qxF -e "$job" -e "$SLURM_JOB_ID" "$state/cancel" 2>/dev/null; then
    echo "cancelled: cancelled, $(saved "$step")"
  elif [[ $fate == requeued ]]; then
    echo "requeued: requeued by Slurm, preempted or with a node lost (${asked:-exit code $code}), $(saved "$step")"
  elif ((code == 75)) && [[ -n $fault ]] && (($(stopped_at "$step") >= 2)); then
    echo "stop: $fault; three attempts in a row committed no step"
  elif ((code == 75)) && [[ -n $fault ]] && ((failures >= 20)); then
    echo "stop: $fault, after 20 restarts, the most that the profile allows"
  elif ((code == 75)) && [[ -n $fault ]]; then
    echo "requeue: $fault, $(saved "$step"), restart $((failures + 1)) of at most 20"
  elif ((code == 75)) && (($(stopped_at "$step") >= 2)); then
    echo "stop: three attempts in a row committed no step; is the time limit too short?"
  elif ((code == 75)); then
    echo "requeue: stopped on request (${asked:-by the ranks}), $(saved "$step")"
  elif (($(failed_at "$step") >= 1)); then
    echo "stop: failed (exit code $code), and no step was committed since the last restart"
  elif ((failures >= 20)); then
    echo "stop: failed (exit code $code) after 20 restarts, the most that the profile allows"
  else
    echo "requeue: failed (exit code $code), restart $((failures + 1)) of at most 20"
  fi
}

finish() { # finish CODE: write it down, and come back or not
  local code step verdict action fault nodes names=
  trap '' TERM USR1 # the end of a job reaches this script's children as well, and some of them write what follows
  code=$(weigh "$1") step=$(committed)
  if ((code == 75)); then fault=$(fault_words); else fault=; fi
  verdict=$(decide "$code" "$step" "$fault")
  action=${verdict%%: *}
  if [[ -n $fault && $action != fenced ]]; then
    tail -n +2 -- "$(fault_file)" >"$exits/bad-nodes"
  fi
  if [[ -s $exits/bad-nodes ]]; then
    name_bad_nodes "$exits/bad-nodes"
  fi
  note end "\"step\":$step,\"code\":$code,\"reason\":\"${verdict#*: }\",\"action\":\"$action\"${fault:+,\"fault\":\"$fault\"}"
  say "${verdict#*: } -> $action"
  # Slurm may have requeued it already, preempted in the very moment in which it came to its end.
  if [[ $action =~ ^(done|stop|cancelled)$ && $(fate) == requeued ]]; then scancel "$job"; fi
  if [[ $action == requeue ]]; then
    if [[ -n $names ]]; then
      if start_elsewhere; then exit "$code"; fi
    elif ask_slurm scontrol requeue "$job"; then
      exit "$code"
    fi
    note end "\"step\":$step,\"code\":$code,\"reason\":\"Slurm would not requeue\",\"action\":\"stop\""
    say "not requeued: where the cluster forbids it, set requeue: false and chain: N in the profile"
  fi
  exit "$code"
}

# ---- 6. Where the ranks meet ----

# The first node's address, asked for once here and not by every rank of a large job, and a port that follows from
# the job's number and that nobody on this node holds.
MASTER_ADDR=$(getent ahostsv4 "$SLURMD_NODENAME" | awk 'NR == 1 { print $1 }')
if [[ -z $MASTER_ADDR || $MASTER_ADDR == 127.* ]]; then MASTER_ADDR=$SLURMD_NODENAME; fi # its own loopback is no address for others

meet() {
  MASTER_PORT=$((10000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000))
  while (exec 3<>"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
  export MASTER_ADDR MASTER_PORT
}

# ---- 7. Are these nodes fit? ----

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
verdict=$?
case $verdict in
  0) ;;
  1) exclude_nodes ;;
  # All nodes alike: a mistake, unless the run has trained here before; then it is the cluster's, and may pass.
  2) if ((before < 0)); then finish 2; else finish 1; fi ;;
  *) finish "$verdict" ;;
esac

# ---- 8. The ranks ----

plural() { printf '%s' "$1 $2" && (($1 == 1)) || printf s; } # plural 2 rank: 2 ranks

nodes=0
for count in "${usable[@]}"; do
  if ((count <= SLURM_JOB_NUM_NODES)); then nodes=$count; fi
done
if ((nodes == 0)); then
  say "a step's windows cannot be shared evenly by $(plural 8 rank) on each of $(plural "$SLURM_JOB_NUM_NODES" node)"
  finish 2
fi

meet
if [[ -n $asked ]]; then finish 75; fi # nothing is done yet that the ranks could save
say "starting $(plural $((nodes * 8)) rank) on $(plural "$nodes" node); they meet at $MASTER_ADDR:$MASTER_PORT"
# Slurm binds no task: each rank takes the cores beside its GPU (bind_ranks of the profile).
# One task a GPU, all GPUs of a node visible to each of its tasks (NCCL's peer-to-peer wants that).
# A rank that fails ends the others: they would wait for it in their next collective. Rank 0 is on this node, where
# they meet, also when not all nodes are used.
listening --relative=0 --nodes="$nodes" --ntasks="$((nodes * 8))" --ntasks-per-node=8 \
  --cpus-per-task=12 --kill-on-bad-exit=1 --cpu-bind=none \
  /shared/ada/lmscale/.venv/bin/python -m launcher.rank \
  "$config" --run-folder "$run" --lock "$frozen/requirements.lock" --environment refuse &
await $!
finish $?
