"""What a run has been through, as its folder tells: starts, rewinds, resumes.

    starts.py    attempts.jsonl: the starts of a run, and saves that a later start has superseded
    rewinds.py   rewinds.jsonl: how often the guard took the run back, and the samples jumped
    resumes.py   resumes.jsonl: the checkpoint that each start took up, and those it passed over
    history.py   all of these in one value

Facts only, read from RUN/ by training, checkpoints and evaluation alike; the guard plans, and
``lmscale/train`` acts. The first call to read is ``read_history``.
"""
