"""What a run has been through, as its folder tells.

    attempts.jsonl   its starts; resumes.jsonl: the checkpoint that each start took up
    rewinds.jsonl    how often the guard took the run back, and the samples jumped

Facts only, read from RUN/ by training, evaluation and `lmscale checkpoint`; the guard plans, and
``lmscale/train`` acts. The first call to read is ``history.read_history``.
"""
