"""The run folder: what a run writes of itself while it goes on, and who reads it.

Rank 0 writes, and every rank its own log; nothing here loads torch::

    attempts.py     attempts.jsonl   when each start began and ended, and on what its time went
    goodput.py      (pure)           the rows of attempts.jsonl → seconds by cause
    lease.py        lease.json       which start may commit
    logs.py, trackers.py             log files, metrics.jsonl, TensorBoard

Readers: ``run_folder.read_status`` gives all of a folder as one ``RunStatus``,
``starts.plan_starts`` every start of a run as one ``Start``. Read those two first.
"""
