"""Are the allocated nodes fit? Look at them, measure, judge, remember the bad ones.

::

    srun, every node:  probe ─→ node_checks (folders, space, shards, GPUs counted, health check)
                            └→ node_probe  (matrix product, all-reduce; a process with torch)
                                   └→ NODE.json ─┐
    srun, one node:    judge ─→ verdict ←────────┘ ─→ table, bad-nodes, exit code 0, 1 or 2
                                   └→ cordon (the nodes that later jobs leave out)

``__main__`` holds the commands; read ``probe`` and ``judge`` there first.
"""
