"""Models in the formats of other programs, both ways, each verified.

``config/hf`` says how an architecture's settings and tensors are called. ``rules.py`` turns one
parameter into their tensors and back.
"""
