#!/bin/bash
#
# llama_7b: evaluation on the cluster example, written by lmscale.
#
# What follows is a frozen copy: a requeued attempt runs this very text with the code beside it.
# To change it, change the cluster profile and launch again.
#
# In this order:
#   1. Where things are
#   2. What every process of the job finds in its environment
#   3. One rank scores a checkpoint
#
#SBATCH --job-name=llama_7b-evaluate-eef446ca
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:1
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/shared/ada/runs/llama_7b/slurm/job-%j.out
#SBATCH --chdir=/shared/ada/runs/llama_7b/slurm/20261122-011900-train

# ---- 1. Where things are ----

submission=20261122-011900-train

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

# ---- 3. One rank scores a checkpoint ----

say "submission $submission: evaluating on $SLURM_JOB_NODELIST"
srun --nodes=1 --ntasks=1 --cpus-per-task=12 \
  /shared/ada/lmscale/.venv/bin/python -m lmscale.cli.main evaluate /shared/ada/runs/llama_7b
