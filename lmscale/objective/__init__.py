"""What is predicted and how it is scored: raw rows and a model → sums and counts.

    Rows ──Preparation (worker, no torch)──▶ arrays by name ──to_device──▶ scoring(model) ──▶ Scores

An objective has two halves. Its preparation turns the rows of a micro-batch into arrays by name, in
the loader's workers: ``causal``, ``prefix``, ``fill_middle``; ``masked`` by ``masking``; ``spans``
and ``infill``, which make ``pairs``; ``masked_parts``; ``mixture``, of some of these. Random
numbers are of ``draws``. Its scoring is a module around the model, which takes those arrays and
gives sums by name with their counts (``scores``): ``causal_scoring``, ``masked_scoring`` and
``pair_scoring``, by ``target_scoring`` and ``cross_entropy``. Start with ``objective``, which joins
the two. The modules of the first half load no torch, and this package's ``__init__`` imports
nothing, so that a worker may unpickle a preparation.
"""
