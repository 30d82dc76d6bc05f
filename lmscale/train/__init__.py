"""Training a run: assemble it, do its steps, and what follows a step.

::

    train_run (session.py) ──→ the ranks meet, claim_folder (folder.py)
        └→ open_run (assemble.py): stream, model, engine, the checkpoint to resume from
             └→ train_steps (loop.py) ──StepReport──→ AfterStep (after_step.py):
                    count, record, show, judge, compare, save, score, in this order

The first call to read is ``train_run``, then ``train_steps``, which is a generator. ``saver.py``
saves while training goes on, ``compare.py`` finds ranks that differ, ``evidence.py`` writes down a
divergence, ``votes.py`` agrees on stops and saves.
"""
