"""What a run will need, before it runs: arithmetic over its configuration, without torch.

    config ─┬─ list_parameters ─┐
            └─ list_operations ─┼─ plan_memory ─→ bytes of a rank, by component
                                └─ plan_step   ─→ seconds of a step, and what bounds them
    both, over a whole run: plan_run; the alternatives, in order: advise

A forward and backward pass is written down by each family as a ``Tape``: every operator with its
sizes, its work, and the tensors that autograd keeps. Everything else is counted from there.
"""
