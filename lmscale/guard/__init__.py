"""Judge a step by its figures, and plan a way back."""
