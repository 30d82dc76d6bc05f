"""Whether a run still moves: heartbeats, the watchdog that judges them, and stacks.

::

    loop ──phase, tick──→ Heartbeat (a thread) ──→ RUN/heartbeats/rank-00003.json
                               │ at every beat                │ read by rank 0 or a deputy
                               └→ Watchdog ←──────────────────┘
                                     │ standstill.py judges: which ranks, for how long
                                     └→ log, RUN/watch.jsonl; stacks.py; exit code 1 at the limit

The first call to read is ``open_watch`` (watchdog.py). Why the watchdog lives in the ranks:
docs/decisions/0015-watchdog-in-the-ranks.md.
"""
