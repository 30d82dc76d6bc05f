"""A trained model made smaller, and measured beside the one it was.

In: a run's checkpoint. Out: the folder of a run that has not begun, with pruned weights or some of
the layers, from which a run retrains or a student learns; a GGUF file of 8 or 4 bits a weight; and
rows of size, speed and held-out loss. The retraining itself is a run like any other:
``engine.keep_zeros``, ``objective: distill``.
"""
