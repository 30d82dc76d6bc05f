"""A trained model → held-out figures and text.

::

    RUN ──load_run──→ LoadedRun ──┬─→ evaluate_set (perplexity.py): loss, perplexity, bits per byte,
                                  │      of classes and tags their counts (labelled.py), over the
                                  │      sets that open_evaluation_sets opens and checks
                                  ├─→ count_run (baseline.py): a trigram or unigram (ngram.py) of
                                  │      what the run has read, whose loss on the same targets is
                                  │      the yardstick
                                  ├─→ Generation (generate.py): a prompt → ids by Sampling
                                  │      ─stream_text──→ text
                                  └─→ write_answers (answering.py): many prompts → their likeliest
                                         texts, which write_set (written.py) judges
    tasks ──open_tasks──→ score_tasks (harness.py), by the requests that a run's Respondent
                             (respondent.py) answers; local_tasks.py makes tasks of held-out text

``privacy.py`` and ``bias.py`` are what ``lmscale probe`` counts: what a model repeats of the
documents that the run has read (beginnings.py), and what it finds likely of whom (likelihoods.py).

The first calls to read are ``load_run`` and ``evaluate_set``. The evaluation between the steps of a
run, by the same functions, is ``lmscale/train/scoring.py``.
"""
