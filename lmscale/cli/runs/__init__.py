"""``lmscale runs``: list, status, logs, audit, cancel.

In come a run's folder and what Slurm says of its jobs; out come text, or JSON with ``--json``::

    runs/read_status ──┐
                       ├─ launcher/judge_run ─→ look.py: RunLook ─→ view.py: a row of `list`
    squeue, sacct ─────┘                             │
                                                look.py: RunPage ─→ view.py: `status`

logs.py merges the ranks' logs by time. Read ``commands.py:status`` first.
"""
