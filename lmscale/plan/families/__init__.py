"""Each family of models for the planner: its parameters, and its forward pass on a ``Tape``."""
