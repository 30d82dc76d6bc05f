"""Starts the ranks of a run, on one machine or under Slurm. Only a node's probe loads torch.

::

    lmscale launch local   local.launch_local → local.Supervisor          ranks are child processes
    lmscale launch slurm   submit.prepare → checks.check → submit.submit
                --job all  the same of each stage, by pipeline.plan_stage and submit_stages

    configuration ─┐
    profile ───────┼→ plan.py → SlurmJob → render.py → batch script → submit.py → sbatch (slurm.py)
    --nodes, … ────┘

On the nodes the batch script starts ``launcher.preflight`` (are the nodes fit?), ``launcher.rank``
(one rank of a training) or ``launcher.task`` (one task of a data job). ``status``, ``history`` and
``cancel`` serve `lmscale runs`. Read ``submit.prepare`` first, then ``slurm/train.sbatch.j2``.
"""
