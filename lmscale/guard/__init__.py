"""The guard: judge each step by its figures, and plan a way back from a divergence.

::

    StepReport ──→ state.py: loss, gradient norm, limits of the recent steps
                      │
                      ▼
    Guard (guard.py) ──→ state.judge_step: good, spike, not finite ──→ divergence.py: a verdict
                      │                                                    on several steps
                      └──→ RewindRequest, or GuardError (exit code 76)
                              └→ divergence.py: which checkpoint, which samples are jumped

Pure functions of figures but for ``Guard``, which every rank calls alike; the first call to read is
``Guard.__call__``. What happens to the run then: ``lmscale/train/session.py``.
"""
