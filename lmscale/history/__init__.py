"""What a run has been through, as its folder tells: starts, rewinds, resumes.

    history.py   attempts.jsonl, and resumes.jsonl: the checkpoint that each start took up
    rewinds.py   rewinds.jsonl: how often the guard took the run back, and the samples jumped

Facts only, read from RUN/ by training, checkpoints and evaluation alike; the guard plans, and
``lmscale/train`` acts. The first call to read is ``read_history``.
"""
